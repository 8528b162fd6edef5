"""Clients' images: data URLs, guarded downloads, sandboxed decoding."""
