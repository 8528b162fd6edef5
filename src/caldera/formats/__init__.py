"""Model folders and weight files: safetensors, original LLaVA, GGUF, LoRA adapters."""
