"""Dialogues to be written in, checked replies of a language model out: prompts, endpoints, and the run that goes on."""
