"""Any OpenAI-compatible LLM."""
