"""LLaVA's own layout."""
