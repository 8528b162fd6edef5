"""Teacher that is an LLM."""
