"""Clients' images, guarded."""
