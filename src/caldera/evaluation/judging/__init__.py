"""Answers in, a judge's verdicts and what they come to out; any model at an OpenAI-compatible address can judge."""
