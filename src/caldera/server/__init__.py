"""HTTP server: OpenAI-compatible API, guarded image loading, web page."""
