"""What the engine needs of a language model: keys and values of several conversations, each extended by tokens.

`TransformersDecoder` does it for every decoder that transformers knows, through its own cache, one conversation after
the other. `llama_decoder.py` has the fast way for models of LLaMA's shape.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

KVCache = tuple[Tensor, ...]
"""Of some tokens, for all layers."""


class Decoder(Protocol):
    """Holds conversations in numbered slots; each is extended by itself, whatever lies in the others."""

    description: str
    """What it is, for logs and reports."""

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Read the next tokens of a conversation, (tokens, width); return the last one's logits, (vocabulary,)."""
        ...

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Read one more token of each of some conversations; return their logits, (rows, vocabulary)."""
        ...

    def reset(self, slot: int) -> None:
        """Forget a conversation."""
        ...

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of what is held of a conversation; None if it cannot be cut and joined again."""
        ...

    def import_cache(self, slot: int, kept: KVCache, tokens: int) -> None:
        """Begin a conversation with the first tokens of a saved one."""
        ...


class TransformersDecoder:
    """Any decoder of transformers, through its own cache."""

    def __init__(self, language: PreTrainedModel) -> None:
        """Decode with `language`, as it is."""
        self._language: Any = language
        self._caches: dict[int, DynamicCache] = {}
        self._lengths: dict[int, int] = {}
        self.description = f"transformers' {type(language).__name__}"

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Read the next tokens of a conversation."""
        cache, length = self._cache(slot)
        logits = self._language(
            inputs_embeds=embedded.unsqueeze(0),
            position_ids=torch.arange(
                length, length + len(embedded), device=embedded.device
            ).unsqueeze(0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[0, -1]  # (vocabulary,)
        self._lengths[slot] = length + len(embedded)
        return logits

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Read one more token of each of some conversations."""
        table = self._language.get_input_embeddings()
        ids = torch.tensor(tokens, device=table.weight.device).unsqueeze(1)  # (rows, 1)
        return torch.stack(
            [self.prefill(slot, row) for slot, row in zip(slots, table(ids), strict=True)]
        )

    def reset(self, slot: int) -> None:
        """Forget a conversation."""
        self._caches.pop(slot, None)
        self._lengths.pop(slot, None)

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of what is held of a conversation."""
        cache, _ = self._cache(slot)
        kept: list[Tensor] = []
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
                return None  # windows and states are not kept for every token
            kept += layer.keys.clone(), layer.values.clone()
        return tuple(kept)

    def import_cache(self, slot: int, kept: KVCache, tokens: int) -> None:
        """Begin a conversation with the first tokens of a saved one."""
        self.reset(slot)
        cache, _ = self._cache(slot)
        for layer, at in enumerate(range(0, len(kept), 2)):
            keys, values = (part[:, :, :tokens].clone() for part in kept[at : at + 2])
            cache.update(keys, values, layer)
        self._lengths[slot] = tokens

    def _cache(self, slot: int) -> tuple[DynamicCache, int]:
        """Return a conversation's cache and length; what a failed extension left behind it is cut off."""
        if slot not in self._caches:
            self._caches[slot] = DynamicCache(config=self._language.config)
            self._lengths[slot] = 0
        cache, length = self._caches[slot], self._lengths[slot]
        for layer in cache.layers:
            if type(layer) is DynamicLayer and layer.get_seq_length() > length:
                layer.crop(length)
        return cache, length
