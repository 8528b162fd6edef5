"""Atomic files, journals, record streams, skipped items and run fingerprints."""
