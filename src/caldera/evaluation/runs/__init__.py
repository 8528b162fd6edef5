"""Runs: evaluations of a benchmark, resumable, with results and a report."""
