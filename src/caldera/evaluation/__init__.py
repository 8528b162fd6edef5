"""Benchmarks, answerers, judges, scores with confidence intervals, reports."""
