"""Sources of answers: a local model folder or a server."""
