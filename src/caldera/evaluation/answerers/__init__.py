"""Items in, answers out: by a model folder, or by any server that speaks OpenAI's chat completions."""
