"""Whole runs as values, and the way that carries one out from drawing to report."""
