"""Stage-by-stage comparison with transformers and llama.cpp."""
