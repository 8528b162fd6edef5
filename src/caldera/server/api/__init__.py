"""A model folder in, OpenAI's chat completions over HTTP out."""
