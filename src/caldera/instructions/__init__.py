"""Instruction data: dialogues about annotated images, written by a teacher."""
