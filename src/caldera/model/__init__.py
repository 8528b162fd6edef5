"""A Batch in, a loss or next-token logits out: vision tower, projector, splice, language model, and their folder."""
