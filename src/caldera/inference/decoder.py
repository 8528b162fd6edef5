"""Decoder protocol, and the decoder that runs any language model of transformers.

`llama_decoder.py` has a faster decoder for models of LLaMA's architecture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

KVCache = tuple[Tensor, ...]
"""Keys and values of some tokens, for all layers."""


class Decoder(Protocol):
    """A language model with the keys and values of several sequences, each in a numbered slot."""

    description: str
    """For logs and reports."""

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Append tokens, (tokens, width), to a sequence; return the logits of the last one, (vocabulary,)."""
        ...

    def prefill_batch(self, slots: Sequence[int], embedded: Sequence[Tensor]) -> Tensor:
        """Prefill whole prompts, each (tokens, width), together into empty slots; return logits, (rows, vocabulary).

        Later steps must decode all of these slots that were not reset since, and no others.
        """
        ...

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of some sequences; return their logits, (rows, vocabulary)."""
        ...

    def reset(self, slot: int) -> None:
        """Empty a slot."""
        ...

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of a slot's keys and values; None if they cannot be cut and restored."""
        ...

    def import_cache(self, slot: int, cached: KVCache, tokens: int) -> None:
        """Start a sequence with the first tokens of an exported one."""
        ...


@dataclass(slots=True)
class _PaddedBatch:
    """Sequences that were prefilled together, padded on the left."""

    slots: list[int]
    cache: DynamicCache
    mask: Tensor
    """1 at tokens and 0 at padding, (rows, tokens)."""

    positions: Tensor
    """Position of each row's last token, (rows, 1)."""


class TransformersDecoder:
    """Decoder that uses the language model as transformers has it, with its own cache."""

    def __init__(self, language: PreTrainedModel) -> None:
        self._language: Any = language
        self._caches: dict[int, DynamicCache] = {}
        self._lengths: dict[int, int] = {}
        self._batch: _PaddedBatch | None = None
        self.description = f"transformers' {type(language).__name__}"

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Append tokens to a sequence."""
        cache, length = self._cache(slot)
        positions = torch.arange(length, length + len(embedded), device=embedded.device)
        logits = self._forward(embedded.unsqueeze(0), cache, position_ids=positions.unsqueeze(0))
        self._lengths[slot] = length + len(embedded)
        return logits[0]

    def prefill_batch(self, slots: Sequence[int], embedded: Sequence[Tensor]) -> Tensor:
        """Prefill whole prompts together; positions start at each prompt's own first token."""
        padded = pad_sequence([*embedded], batch_first=True, padding_side="left")
        lengths = torch.tensor([len(prompt) for prompt in embedded], device=padded.device)
        columns = torch.arange(padded.shape[1], device=padded.device)
        mask = (columns >= padded.shape[1] - lengths.unsqueeze(1)).long()  # (rows, tokens)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)  # (rows, tokens)
        cache = DynamicCache(config=self._language.config)
        logits = self._forward(padded, cache, attention_mask=mask, position_ids=positions)
        self._batch = _PaddedBatch([*slots], cache, mask, positions[:, -1:])
        return logits

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of some sequences."""
        table = self._language.get_input_embeddings()
        ids = torch.tensor(tokens, device=table.weight.device).unsqueeze(1)  # (rows, 1)
        if self._batch is None:
            rows = zip(slots, table(ids), strict=True)
            return torch.stack([self.prefill(slot, row) for slot, row in rows])
        batch = self._batch
        assert list(slots) == batch.slots, "a batch is decoded as a whole"
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(slots), 1)], dim=-1)
        batch.positions = batch.positions + 1
        return self._forward(
            table(ids), batch.cache, attention_mask=batch.mask, position_ids=batch.positions
        )

    def reset(self, slot: int) -> None:
        """Empty a slot; a batch keeps its other rows."""
        self._caches.pop(slot, None)
        self._lengths.pop(slot, None)
        if self._batch is not None and slot in self._batch.slots:
            rows = [row for row, other in enumerate(self._batch.slots) if other != slot]
            self._batch = _select_rows(self._batch, rows) if rows else None

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of a slot's keys and values."""
        cache, _ = self._cache(slot)
        exported: list[Tensor] = []
        for layer in cache.layers:
            if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
                return None  # sliding windows and states do not hold every token
            exported += layer.keys.clone(), layer.values.clone()
        return tuple(exported)

    def import_cache(self, slot: int, cached: KVCache, tokens: int) -> None:
        """Start a sequence with the first tokens of an exported one."""
        self.reset(slot)
        cache, _ = self._cache(slot)
        for layer, (keys, values) in enumerate(zip(cached[::2], cached[1::2], strict=True)):
            cache.update(keys[:, :, :tokens].clone(), values[:, :, :tokens].clone(), layer)
        self._lengths[slot] = tokens

    def _forward(self, embedded: Tensor, cache: DynamicCache, **inputs: Tensor) -> Tensor:
        """Run the model on embedded tokens, (rows, tokens, width); return the last logits, (rows, vocabulary)."""
        return self._language(
            inputs_embeds=embedded,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        ).logits[:, -1]

    def _cache(self, slot: int) -> tuple[DynamicCache, int]:
        """Return a slot's cache and length, without the tokens of a failed forward pass."""
        if slot not in self._caches:
            self._caches[slot] = DynamicCache(config=self._language.config)
            self._lengths[slot] = 0
        cache, length = self._caches[slot], self._lengths[slot]
        for layer in cache.layers:
            if type(layer) is DynamicLayer and layer.get_seq_length() > length:
                layer.crop(length)
        return cache, length


def _select_rows(batch: _PaddedBatch, rows: Sequence[int]) -> _PaddedBatch:
    """Return a batch with only some of its rows."""
    chosen = torch.tensor(rows, device=batch.mask.device)
    batch.cache.batch_select_indices(chosen)
    slots = [batch.slots[row] for row in rows]
    return _PaddedBatch(slots, batch.cache, batch.mask[chosen], batch.positions[chosen])
