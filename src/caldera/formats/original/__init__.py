"""The layout of LLaVA's own code: config and weights."""
