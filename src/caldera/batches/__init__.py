"""Conversations in, tensors of a training step out."""
