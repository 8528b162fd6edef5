"""An LLM as judge: protocols, reply parsing, verdicts, scores."""
