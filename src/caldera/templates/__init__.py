"""Conversation to ids and labels."""
