"""Published benchmarks, one file each, and custom questions."""
