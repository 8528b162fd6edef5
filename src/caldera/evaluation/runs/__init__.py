"""Evaluation runs in a folder: answers, results, report, comparison."""
