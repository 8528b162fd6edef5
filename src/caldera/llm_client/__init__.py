"""Client for any OpenAI-compatible LLM: retries, rate limits, budget and journal."""
