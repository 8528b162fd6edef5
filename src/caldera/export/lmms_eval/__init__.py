"""Plug-in for lmms-eval."""
