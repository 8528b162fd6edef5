"""Complete runs: the demo, a paper's recipe, ablations, and the inspection of one record."""
