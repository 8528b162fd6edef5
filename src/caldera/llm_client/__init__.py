"""Client for any OpenAI-compatible LLM: retries, rate limits, a budget and a journal."""
