"""Tensors of a training step: samples, prefix sharing, packing, cached image features."""
