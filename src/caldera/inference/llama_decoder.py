"""Fast decoder for language models of LLaMA's architecture, for several sequences.

It computes what transformers computes, laid out for few tokens at a time: packed weights, preallocated slots for keys
and values, and attention of a single query as plain products over its group of heads. `choose_decoder` compares its
logits with the model's own before it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from caldera.inference.decoder import KVCache
from caldera.inference.packed_linear import LinearOp, Quantization, build_linear

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of this architecture, as their config names them."""

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""RoPE scaling types that do not depend on the length of the sequence."""

_INITIAL_CAPACITY = 512
"""Tokens that a slot can hold at first; doubled when needed."""

_BLOCK = 128
"""Queries for which attention is computed together."""

_STRIDE = 64
"""Decoding attends to a multiple of this number of positions: oneDNN compiles a product for each shape."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Weights of one layer."""

    input_norm: Tensor
    qkv_proj: LinearOp
    query_norm: Tensor | None
    key_norm: Tensor | None
    o_proj: LinearOp
    post_attention_norm: Tensor
    gate_up_proj: LinearOp
    down_proj: LinearOp


class LlamaDecoder:
    """Decoder for LLaMA's architecture."""

    def __init__(
        self, language: PreTrainedModel, slots: int, quantization: Quantization = "as stored"
    ) -> None:
        """Decode at most `slots` sequences with `language`, which must have no `unsupported_reason`."""
        config: Any = language.config
        inner: Any = language.base_model
        self._embeddings = inner.embed_tokens
        self._epsilon = float(config.rms_norm_eps)
        attention = inner.layers[0].self_attn
        self._head_width = int(attention.head_dim)
        self._key_heads = int(config.num_key_value_heads)
        self._heads = int(config.num_attention_heads)
        self._scale = float(attention.scaling)
        self._layers = [_build_layer(layer, quantization) for layer in inner.layers]
        self._norm = inner.norm.weight
        head: Any = language.get_output_embeddings()
        self._head = build_linear([head], quantization)
        self._rotary = inner.rotary_emb
        self._slots = slots
        self._lengths = [0] * slots
        self._capacity = 0
        self._max_length = int(config.max_position_embeddings)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        """Per layer, (slots, key heads, capacity, head width)."""
        self._grow_cache(min(_INITIAL_CAPACITY, self._max_length))
        self.description = (
            f"{config.model_type} of {len(self._layers)} layers, packed, {quantization}"
        )

    @staticmethod
    def unsupported_reason(language: PreTrainedModel) -> str:
        """Return why a model cannot be decoded; empty if it can."""
        settings = language.config.to_dict()
        model_type = settings["model_type"]
        if model_type not in MODEL_TYPES:
            return f"models of type {model_type!r} are not among {', '.join(MODEL_TYPES)}"
        if set(settings.get("layer_types") or ["full_attention"]) != {"full_attention"} or (
            settings.get("sliding_window") and settings.get("use_sliding_window", True)
        ):
            return "its attention has a sliding window"
        inner: Any = language.base_model
        if inner.rotary_emb.rope_type not in _ROPE_TYPES:
            return f"its RoPE scaling is {inner.rotary_emb.rope_type!r}"
        if settings["hidden_act"] != "silu":
            return f"its activation is {settings['hidden_act']!r}, not silu"
        return ""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation, except for int8 products."""
        return self._embeddings.weight.dtype

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Append tokens to a sequence."""
        start = self._lengths[slot]
        end = start + len(embedded)
        self._grow_cache(end)
        cosines, sines = self._cosines[start:end], self._sines[start:end]  # (tokens, 1, head width)
        hidden = embedded  # (tokens, width)
        for layer, all_keys, all_values in zip(self._layers, self._keys, self._values, strict=True):
            query, key, value = self._project_qkv(layer, hidden, cosines, sines)
            keys, values = all_keys[slot, :, :end], all_values[slot, :, :end]
            keys[:, start:] = key.transpose(0, 1)
            values[:, start:] = value.transpose(0, 1)
            if layer is self._layers[-1]:
                # only the logits of the last token are needed
                query, hidden = query[-1:], hidden[-1:]
            attended = self._prefill_attention(query, keys, values)  # (tokens, heads * head width)
            hidden = self._output_and_mlp(layer, hidden, attended)
        self._lengths[slot] = end
        return self._logits(hidden)[0]

    def prefill_batch(self, slots: Sequence[int], embedded: Sequence[Tensor]) -> Tensor:
        """Prefill whole prompts, one after the other."""
        return torch.stack(
            [self.prefill(slot, prompt) for slot, prompt in zip(slots, embedded, strict=True)]
        )

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Append one token to each of some sequences."""
        positions = [self._lengths[slot] for slot in slots]
        self._grow_cache(max(positions) + 1)
        device = self._embeddings.weight.device
        mask = _DecodeMask(slots, positions, self._capacity, self._embeddings.weight)
        rows, columns = (torch.tensor(indices, device=device) for indices in (slots, positions))
        hidden = self._embeddings(torch.tensor(tokens, device=device))  # (rows, width)
        cosines, sines = self._cosines[columns], self._sines[columns]  # (rows, 1, head width)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            query, key, value = self._project_qkv(layer, hidden, cosines, sines)
            keys[rows, :, columns] = key
            values[rows, :, columns] = value
            attended = self._decode_attention(query, keys, values, mask)
            hidden = self._output_and_mlp(layer, hidden, attended)
        for slot in slots:
            self._lengths[slot] += 1
        return self._logits(hidden)

    def reset(self, slot: int) -> None:
        """Empty a slot and zero it: masks add to scores, so a NaN that stays could spread."""
        for cache in (*self._keys, *self._values):
            cache[slot, :, : self._lengths[slot] + 1] = 0
        self._lengths[slot] = 0

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of a slot's keys and values."""
        length = self._lengths[slot]
        return tuple(
            torch.stack([layer[slot, :, :length] for layer in cache])
            for cache in (self._keys, self._values)
        )

    def import_cache(self, slot: int, cached: KVCache, tokens: int) -> None:
        """Start a sequence with the first tokens of an exported one."""
        self._grow_cache(tokens)
        for cache, exported in zip((self._keys, self._values), cached, strict=True):
            for layer, part in zip(cache, exported, strict=True):
                layer[slot, :, :tokens] = part[:, :tokens]
        self._lengths[slot] = tokens

    def _project_qkv(
        self, layer: _Layer, hidden: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (tokens, its heads, head width)."""
        heads, key_heads = self._heads, self._key_heads
        projected = layer.qkv_proj(self._rms_norm(hidden, layer.input_norm)).view(
            len(hidden), heads + 2 * key_heads, self._head_width
        )
        query_key = projected[:, : heads + key_heads]  # (tokens, heads + key heads, head width)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = query_key.split([heads, key_heads], dim=1)
            normed = self._rms_norm(query, layer.query_norm), self._rms_norm(key, layer.key_norm)
            query_key = torch.cat(normed, dim=1)
        query_key = _apply_rotary(query_key, cosines, sines)
        return query_key[:, :heads], query_key[:, heads:], projected[:, heads + key_heads :]

    def _prefill_attention(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from the last tokens, (tokens, heads, head width), to all, (key heads, all tokens, head width)."""
        query = query.view(len(query), self._key_heads, -1, self._head_width).permute(1, 2, 0, 3)
        attention = _sdpa_attention if query.dtype == torch.float32 else _matmul_attention
        num_queries = query.shape[2]
        before = keys.shape[1] - num_queries
        blocks = []
        # in blocks: products with later keys are omitted, which saves half of them
        for start in range(0, num_queries, _BLOCK):
            block = query[:, :, start : start + _BLOCK]  # (key heads, group, tokens, head width)
            end = before + start + block.shape[2]
            blocks.append(attention(block, keys[:, :end], values[:, :end], self._scale))
        attended = torch.cat(blocks, dim=2).permute(2, 0, 1, 3)
        return attended.reshape(num_queries, -1)  # (tokens, heads * head width)

    def _decode_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: "_DecodeMask"
    ) -> Tensor:
        """Attend from one token of each sequence, (rows, heads, head width), to all before it."""
        keys, values = (
            cache[mask.low : mask.high, :, : mask.length].flatten(0, 1) for cache in (keys, values)
        )  # (slots * key heads, length, head width)
        query = mask.to_slots(query)  # (slots, heads, head width)
        grouped = query.reshape(len(keys), -1, self._head_width)  # (slots * key heads, group, ...)
        scores = torch.bmm(grouped * self._scale, keys.transpose(1, 2))
        num_slots = mask.high - mask.low
        scores.view(num_slots, -1, mask.length).add_(mask.bias)
        attended = torch.bmm(scores.softmax(dim=-1), values)
        return mask.to_rows(attended.view(num_slots, -1))  # (rows, heads * head width)

    def _output_and_mlp(self, layer: _Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """Return a layer's output, (tokens, width), from its input and the output of its attention."""
        hidden = hidden + layer.o_proj(attended)
        gate, up = layer.gate_up_proj(self._rms_norm(hidden, layer.post_attention_norm)).chunk(
            2, dim=-1
        )
        return hidden + layer.down_proj(functional.silu(gate).mul_(up))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._head(self._rms_norm(hidden, self._norm))

    def _rms_norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Divide by the root mean square, in fp32 as transformers does."""
        exact = hidden.float()
        exact = exact * (exact.square().mean(dim=-1, keepdim=True) + self._epsilon).rsqrt_()
        return weight * exact.to(hidden.dtype)

    def _grow_cache(self, tokens: int) -> None:
        """Grow all slots to hold at least `tokens` tokens."""
        if tokens <= self._capacity:
            return
        capacity = max(tokens, min(self._max_length, 2 * self._capacity))
        weight = self._embeddings.weight
        shape = (self._slots, self._key_heads, capacity, self._head_width)
        for cache in (self._keys, self._values):
            grown = [weight.new_zeros(shape) for _ in self._layers]
            for new, old in zip(grown, cache, strict=False):  # no old ones at first
                new[:, :, : self._capacity] = old
            cache[:] = grown
        self._capacity = capacity
        positions = torch.arange(capacity, device=weight.device).unsqueeze(0)
        cosines, sines = self._rotary(weight, positions)  # (1, capacity, head width)
        self._cosines, self._sines = cosines[0].unsqueeze(1), sines[0].unsqueeze(1)


class _DecodeMask:
    """Slots and positions that a decoding step attends to."""

    def __init__(
        self, slots: Sequence[int], positions: Sequence[int], capacity: int, like: Tensor
    ) -> None:
        """Cover all slots from the first to the last that takes part, so that none is copied.

        Args:
            slots: Slot of each row.
            positions: Position of each row's token.
            capacity: Positions of a slot.
            like: A tensor of the device and precision of the computation.
        """
        self.low, self.high = min(slots), max(slots) + 1
        self.length = min(capacity, -(-(max(positions) + 1) // _STRIDE) * _STRIDE)
        in_order = list(slots) == list(range(self.low, self.high))
        self._rows = None if in_order else torch.tensor(slots, device=like.device) - self.low
        # slots that take no part attend to their first position
        last_positions = [0] * (self.high - self.low)
        for slot, position in zip(slots, positions, strict=True):
            last_positions[slot - self.low] = position
        masked = torch.arange(self.length) > torch.tensor(last_positions).unsqueeze(1)
        bias = torch.zeros(masked.shape, dtype=like.dtype).masked_fill_(masked, -torch.inf)
        self.bias = bias.unsqueeze(1).to(like.device)
        """Added to the scores, (slots, 1, length): minus infinity after each row's token, else 0."""

    def to_slots(self, rows: Tensor) -> Tensor:
        """Return a tensor with each row at its slot, and zeros elsewhere."""
        if self._rows is None:
            return rows
        slots = rows.new_zeros(self.high - self.low, *rows.shape[1:])
        slots[self._rows] = rows
        return slots

    def to_rows(self, slots: Tensor) -> Tensor:
        """Return the row of each slot that takes part."""
        return slots if self._rows is None else slots[self._rows]


def _build_layer(layer: Any, quantization: Quantization) -> _Layer:  # noqa: ANN401 - attributes of modules
    """Read one layer of transformers."""
    attention, mlp = layer.self_attn, layer.mlp
    has_head_norms = type(attention).__name__ == "Qwen3Attention"
    return _Layer(
        input_norm=layer.input_layernorm.weight,
        qkv_proj=build_linear([attention.q_proj, attention.k_proj, attention.v_proj], quantization),
        query_norm=attention.q_norm.weight if has_head_norms else None,
        key_norm=attention.k_norm.weight if has_head_norms else None,
        o_proj=build_linear([attention.o_proj], quantization),
        post_attention_norm=layer.post_attention_layernorm.weight,
        gate_up_proj=build_linear([mlp.gate_proj, mlp.up_proj], quantization),
        down_proj=build_linear([mlp.down_proj], quantization),
    )


def _matmul_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend with plain products, which in bf16 are faster than the fused function at these lengths.

    Args:
        query: Queries of the last tokens, (key heads, group, tokens, head width).
        keys: Keys of all tokens, (key heads, all tokens, head width).
        values: Values of all tokens, as `keys`.
        scale: Factor of the scores.
    """
    key_heads, group, tokens, width = query.shape
    query = (query * scale).reshape(key_heads, group * tokens, width)
    scores = torch.bmm(query, keys.transpose(1, 2))  # (key heads, group * tokens, all tokens)
    last = scores.view(key_heads, group, tokens, -1)[..., -tokens:]
    last += _causal_bias(tokens, query)
    return torch.bmm(scores.softmax(dim=-1), values).view(key_heads, group, tokens, width)


def _sdpa_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend with PyTorch's fused function, which is faster in fp32."""
    key_heads, group, tokens, width = query.shape
    mask = functional.pad(_causal_bias(tokens, query), (keys.shape[1] - tokens, 0))
    return functional.scaled_dot_product_attention(
        query.reshape(1, key_heads * group, tokens, width),
        keys.unsqueeze(0),
        values.unsqueeze(0),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    ).view(query.shape)


def _causal_bias(tokens: int, like: Tensor) -> Tensor:
    """Return the bias that masks later tokens, (tokens, tokens): 0 or minus infinity."""
    return like.new_full((tokens, tokens), -torch.inf).triu_(diagonal=1)


def _apply_rotary(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate heads, (tokens, heads, head width), by their position."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines
