"""The network: vision tower, projector, language model, losses, packed attention, LoRA."""
