"""OpenAI-compatible API: schemas, streaming, keys, metrics, lifecycle."""
