"""A language model of LLaMA's shape in, a fast decoder of several conversations out.

The same sums as transformers' own, laid out for few tokens at a time: products whose weights are packed, keys and
values in slots that stay where they are, attention of one query as plain products over the group of its heads.
`fast_decoder` compares it with the model's own logits before it is used.
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
"""Model types that have this shape, by the name in their config."""

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Ways to scale positions that do not depend on the length of what is read."""

_INITIAL_CAPACITY = 512
"""Tokens that a slot has room for at first; it doubles when needed."""


_BLOCK = 128
"""Tokens that attend together."""


_STRIDE = 64
"""Steps look at a multiple of so many places: oneDNN prepares a product of each shape anew, so few shapes are fast."""


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """One layer's weights."""

    input_norm: Tensor
    """Of the norm before attention."""
    qkv_proj: LinearOp
    """Queries, keys and values."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    o_proj: LinearOp
    post_attention_norm: Tensor
    """Of the norm before the MLP."""
    gate_up_proj: LinearOp
    """Gate and up."""
    down_proj: LinearOp


class LlamaDecoder:
    """A model of LLaMA's shape."""

    def __init__(
        self, language: PreTrainedModel, slots: int, bits: Quantization = "as stored"
    ) -> None:
        """Decode with `language`, to which there must be no `obstacle`, up to `slots` conversations."""
        config: Any = language.config
        inner: Any = language.base_model
        self._words = inner.embed_tokens
        self._epsilon = float(config.rms_norm_eps)
        attention = inner.layers[0].self_attn
        self._head_width = int(attention.head_dim)
        self._key_heads = int(config.num_key_value_heads)
        self._heads = int(config.num_attention_heads)
        self._scale = float(attention.scaling)
        self._layers = [_layer(layer, bits) for layer in inner.layers]
        self._norm = inner.norm.weight
        head: Any = language.get_output_embeddings()
        self._head = build_linear([head], bits)
        self._rotary = inner.rotary_emb
        self._slots = slots
        self._lengths = [0] * slots
        self._room = 0
        self._longest = int(config.max_position_embeddings)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        """Of each layer, (slots, key heads, room, head width)."""
        self._grow_cache(min(_INITIAL_CAPACITY, self._longest))
        self.description = f"{config.model_type} of {len(self._layers)} layers, packed, {bits}"

    @staticmethod
    def unsupported_reason(language: PreTrainedModel) -> str:
        """Say why a model has not this shape; nothing if it has."""
        settings = language.config.to_dict()
        kind = settings["model_type"]
        if kind not in MODEL_TYPES:
            return f"models of type {kind!r} are not among {', '.join(MODEL_TYPES)}"
        if set(settings.get("layer_types") or ["full_attention"]) != {"full_attention"} or (
            settings.get("sliding_window") and settings.get("use_sliding_window", True)
        ):
            return "it attends to a window"
        inner: Any = language.base_model
        if inner.rotary_emb.rope_type not in _ROPE_TYPES:
            return f"its positions are scaled by {inner.rotary_emb.rope_type!r}"
        if settings["hidden_act"] != "silu":
            return f"its activation is {settings['hidden_act']!r}, not silu"
        return ""

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in, the products of int8 aside."""
        return self._words.weight.dtype

    def prefill(self, slot: int, embedded: Tensor) -> Tensor:
        """Read the next tokens of a conversation."""
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
            if layer is self._layers[-1]:  # of its output only the last token's is wanted
                query, hidden = query[-1:], hidden[-1:]
            found = self._prefill_attention(query, keys, values)  # (tokens, heads * head width)
            hidden = self._output_and_mlp(layer, hidden, found)
        self._lengths[slot] = end
        return self._logits(hidden)[0]

    def decode(self, slots: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Read one more token of each of some conversations."""
        places = [self._lengths[slot] for slot in slots]
        self._grow_cache(max(places) + 1)
        device = self._words.weight.device
        reach = _DecodeMask(slots, places, self._room, self._words.weight)
        rows, at = torch.tensor(slots, device=device), torch.tensor(places, device=device)
        hidden = self._words(torch.tensor(tokens, device=device))  # (rows, width)
        cosines, sines = self._cosines[at], self._sines[at]  # (rows, 1, head width)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            query, key, value = self._project_qkv(layer, hidden, cosines, sines)
            keys[rows, :, at] = key
            values[rows, :, at] = value
            found = self._decode_attention(query, keys, values, reach)
            hidden = self._output_and_mlp(layer, hidden, found)
        for slot in slots:
            self._lengths[slot] += 1
        return self._logits(hidden)

    def reset(self, slot: int) -> None:
        """Forget a conversation; what is not a number in it could spread, as places are barred by adding to them."""
        for held in (*self._keys, *self._values):
            held[slot, :, : self._lengths[slot] + 1] = 0
        self._lengths[slot] = 0

    def export_cache(self, slot: int) -> KVCache | None:
        """Return a copy of what is held of a conversation."""
        length = self._lengths[slot]
        both = (self._keys, self._values)
        return tuple(torch.stack([layer[slot, :, :length] for layer in held]) for held in both)

    def import_cache(self, slot: int, kept: KVCache, tokens: int) -> None:
        """Begin a conversation with the first tokens of a saved one."""
        self._grow_cache(tokens)
        for held, saved in zip((self._keys, self._values), kept, strict=True):
            for layer, part in zip(held, saved, strict=True):
                layer[slot, :, :tokens] = part[:, :tokens]
        self._lengths[slot] = tokens

    def _project_qkv(
        self, layer: _Layer, hidden: Tensor, cosines: Tensor, sines: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens, each (tokens, its heads, head width)."""
        heads, key_heads = self._heads, self._key_heads
        all_three = layer.qkv_proj(self._rms_norm(hidden, layer.input_norm)).view(
            len(hidden), heads + 2 * key_heads, self._head_width
        )
        turning = all_three[:, : heads + key_heads]  # (tokens, heads + key heads, head width)
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = turning.split([heads, key_heads], dim=1)
            normed = self._rms_norm(query, layer.query_norm), self._rms_norm(key, layer.key_norm)
            turning = torch.cat(normed, dim=1)
        turned = _apply_rotary(turning, cosines, sines)
        return turned[:, :heads], turned[:, heads:], all_three[:, heads + key_heads :]

    def _prefill_attention(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend from the last tokens, (tokens, heads, head width), to all, (key heads, all tokens, head width)."""
        query = query.view(len(query), self._key_heads, -1, self._head_width).permute(1, 2, 0, 3)
        look = _sdpa_attention if query.dtype == torch.float32 else _matmul_attention
        before = keys.shape[1] - query.shape[2]
        parts = []
        for at in range(
            0, query.shape[2], _BLOCK
        ):  # a block sees nothing behind it, which saves half the sums
            part = query[:, :, at : at + _BLOCK]  # (key heads, group, tokens, head width)
            end = before + at + part.shape[2]
            parts.append(look(part, keys[:, :end], values[:, :end], self._scale))
        found = torch.cat(parts, dim=2).permute(
            2, 0, 1, 3
        )  # (tokens, key heads, group, head width)
        return found.reshape(len(found), -1)

    def _decode_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, reach: "_DecodeMask"
    ) -> Tensor:
        """Attend from one token of each conversation, (rows, heads, head width), to all before it."""
        keys, values = (
            held[reach.low : reach.high, :, : reach.longest].flatten(0, 1)
            for held in (keys, values)
        )  # (slots * key heads, longest, head width)
        query = reach.spread(query)  # (slots, heads, head width)
        grouped = query.reshape(len(keys), -1, self._head_width)  # (slots * key heads, group, ...)
        scores = torch.bmm(grouped * self._scale, keys.transpose(1, 2))
        scores.view(reach.high - reach.low, -1, reach.longest).add_(reach.mask)
        found = torch.bmm(scores.softmax(dim=-1), values)  # (slots * key heads, group, head width)
        return reach.gather(found.view(reach.high - reach.low, -1))

    def _output_and_mlp(self, layer: _Layer, hidden: Tensor, found: Tensor) -> Tensor:
        """Return a layer's output, (tokens, width), from what attention found."""
        hidden = hidden + layer.o_proj(found)
        gate, up = layer.gate_up_proj(self._rms_norm(hidden, layer.post_attention_norm)).chunk(
            2, dim=-1
        )
        return hidden + layer.down_proj(functional.silu(gate).mul_(up))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._head(self._rms_norm(hidden, self._norm))

    def _rms_norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Divide by the root of the mean square, in fp32 as transformers does."""
        wide = hidden.float()
        wide = wide * (wide.square().mean(dim=-1, keepdim=True) + self._epsilon).rsqrt_()
        return weight * wide.to(hidden.dtype)

    def _grow_cache(self, tokens: int) -> None:
        """Let slots hold so many tokens; what they hold moves along."""
        if tokens <= self._room:
            return
        room = max(tokens, min(self._longest, 2 * self._room))
        weight = self._words.weight
        shape = (self._slots, self._key_heads, room, self._head_width)
        for held in (self._keys, self._values):
            fresh = []
            for layer in range(len(self._layers)):
                fresh.append(weight.new_zeros(shape))
                if held:
                    fresh[-1][:, :, : self._room] = held[layer]
            held[:] = fresh
        self._room = room
        places = torch.arange(room, device=weight.device).unsqueeze(0)
        cosines, sines = self._rotary(weight, places)  # (1, room, head width)
        self._cosines, self._sines = cosines[0].unsqueeze(1), sines[0].unsqueeze(1)


class _DecodeMask:
    """Which part of the slots a step looks at, and which of its rows are wanted."""

    def __init__(
        self, slots: Sequence[int], places: Sequence[int], room: int, like: Tensor
    ) -> None:
        """Look at all slots from the first to the last that takes part; none between are copied.

        Args:
            slots: Of the rows.
            places: Of each row's token.
            room: Places that there are.
            like: Says on what and in what is computed.
        """
        self.low, self.high = min(slots), max(slots) + 1
        self.longest = min(room, -(-(max(places) + 1) // _STRIDE) * _STRIDE)
        in_order = list(slots) == list(range(self.low, self.high))
        self._rows = None if in_order else torch.tensor(slots, device=like.device) - self.low
        ends = [0] * (self.high - self.low)  # slots between look at one place
        for slot, place in zip(slots, places, strict=True):
            ends[slot - self.low] = place
        behind = torch.arange(self.longest) > torch.tensor(ends).unsqueeze(1)
        mask = torch.zeros(behind.shape, dtype=like.dtype).masked_fill_(behind, -torch.inf)
        self.mask = mask.unsqueeze(1).to(like.device)
        """What bars each slot from places behind its token, (slots, 1, longest), 0 or minus infinity."""

    def spread(self, rows: Tensor) -> Tensor:
        """Put each row where its slot is."""
        if self._rows is None:
            return rows
        spread = rows.new_zeros(self.high - self.low, *rows.shape[1:])
        spread[self._rows] = rows
        return spread

    def gather(self, slots: Tensor) -> Tensor:
        """Take each row from where its slot is."""
        return slots if self._rows is None else slots[self._rows]


def _layer(layer: Any, bits: Quantization) -> _Layer:  # noqa: ANN401 - transformers' own, by type
    """Read one layer of transformers."""
    attention, mlp = layer.self_attn, layer.mlp
    normed = type(attention).__name__ == "Qwen3Attention"
    return _Layer(
        input_norm=layer.input_layernorm.weight,
        qkv_proj=build_linear([attention.q_proj, attention.k_proj, attention.v_proj], bits),
        query_norm=attention.q_norm.weight if normed else None,
        key_norm=attention.k_norm.weight if normed else None,
        o_proj=build_linear([attention.o_proj], bits),
        post_attention_norm=layer.post_attention_layernorm.weight,
        gate_up_proj=build_linear([mlp.gate_proj, mlp.up_proj], bits),
        down_proj=build_linear([mlp.down_proj], bits),
    )


def _matmul_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend by plain products, which in bf16 are faster than the fused function at these lengths.

    Args:
        query: Of the last tokens, (key heads, group, tokens, head width).
        keys: Of all tokens, (key heads, all tokens, head width).
        values: The same.
        scale: Of the scores.
    """
    key_heads, group, tokens, width = query.shape
    query = (query * scale).reshape(key_heads, group * tokens, width)
    scores = torch.bmm(query, keys.transpose(1, 2))  # (key heads, group * tokens, all tokens)
    last = scores.view(key_heads, group, tokens, -1)[..., -tokens:]
    last += _causal_bias(tokens, query)
    return torch.bmm(scores.softmax(dim=-1), values).view(key_heads, group, tokens, width)


def _sdpa_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend by PyTorch's fused function, which is the faster in fp32."""
    key_heads, group, tokens, width = query.shape
    mask = functional.pad(_causal_bias(tokens, query), (keys.shape[1] - tokens, 0))
    return functional.scaled_dot_product_attention(
        query.reshape(1, key_heads * group, tokens, width), keys.unsqueeze(0), values.unsqueeze(0),
        attn_mask=mask, scale=scale, enable_gqa=True,
    ).view(query.shape)  # fmt: skip


def _causal_bias(tokens: int, like: Tensor) -> Tensor:
    """Return what bars tokens from those behind them, (tokens, tokens), 0 or minus infinity."""
    return like.new_full((tokens, tokens), -torch.inf).triu_(diagonal=1)


def _apply_rotary(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn heads, (tokens, heads, head width), by their position."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat([-second, first], dim=-1) * sines
