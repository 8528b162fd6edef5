"""Export of models for other programs: GGUF, LLaVA's own layout, and lmms-eval."""
