"""Samples and a model in, a trained model out; the loop does not know which stage it runs."""
