"""Stage-by-stage comparison of one model in two implementations."""
