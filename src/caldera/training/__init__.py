"""Training: stages, one loop, optimizer, checkpoints, prefetching, metrics."""
