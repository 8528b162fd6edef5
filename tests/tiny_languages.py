"""Configs of tiny language models of the common families; tests set the vocabulary size."""

from typing import Any

from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

WIDTHS: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


LANGUAGES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDTHS),
    "smollm": LlamaConfig(**WIDTHS, tie_word_embeddings=True, rope_parameters={"rope_theta": 1e5}),
    "mistral": MistralConfig(**WIDTHS, sliding_window=None),
    "qwen2": Qwen2Config(**WIDTHS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**WIDTHS, head_dim=8),
    "gemma": GemmaConfig(**WIDTHS, head_dim=8),
    "phi3": Phi3Config(**WIDTHS),
}
