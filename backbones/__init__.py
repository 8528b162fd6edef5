"""Pretraining of the two shipped backbones."""
