"""Llama.cpp's files."""
