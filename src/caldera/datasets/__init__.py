"""Data sets: import, validate, mix, balance, describe, export."""
