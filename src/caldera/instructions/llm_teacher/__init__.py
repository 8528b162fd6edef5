"""An LLM as teacher: prompts, reply parsing, checks and the resumable run."""
