"""Files of llama.cpp: GGUF reader and writer."""
