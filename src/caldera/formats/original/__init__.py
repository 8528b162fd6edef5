"""Model folders of LLaVA's own code."""
