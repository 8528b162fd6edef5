"""Whole runs: the demo, a paper's recipe, ablations, one stage on user files."""
