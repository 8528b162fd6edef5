"""Pretraining of the two backbones that ship with caldera."""
