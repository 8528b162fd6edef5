"""Instruction data: dialogues from annotations, by an offline or an LLM teacher."""
