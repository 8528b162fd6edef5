"""Decode and preprocess."""
