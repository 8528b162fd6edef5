"""Plug-in that makes a model folder available in lmms-eval."""
