"""Inference engine: continuous batching, KV cache reuse, decoders, sampling."""
