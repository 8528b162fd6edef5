"""Answerers of benchmark items: a model folder, or a server that speaks OpenAI's chat completions."""
