"""A benchmark and what answers it in, a folder of results out: journal, scores with intervals, report, comparison."""
