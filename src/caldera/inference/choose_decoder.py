"""An assistant in, the fastest decoder out that gives the same logits as the language model itself."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caldera.errors import UsageError
from caldera.inference.decoder import Decoder, TransformersDecoder
from caldera.inference.llama_decoder import LlamaDecoder
from caldera.inference.packed_linear import Quantization, pack_layers
from caldera.model.llava import Llava

_log = logging.getLogger(__name__)

_PROBE = 11
"""Tokens that two decoders are compared on."""

_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""How far logits may be from the model's own, as a share of their size: what rounding alone makes, and some more."""

_INT8_LIMIT = 0.3
"""The same for int8. It finds a wrong model, not a loss of quality."""


def choose_decoder(
    language: PreTrainedModel, slots: int, *, bits: Quantization = "as stored", fast: bool = True
) -> Decoder:
    """Return a decoder of up to `slots` conversations.

    Args:
        language: Any decoder of transformers.
        slots: Conversations.
        bits: Of the weights.
        fast: Whether another way than transformers' own may be taken.

    Raises:
        UsageError: int8 is asked for, but this model or device cannot.
    """
    reason = "it was asked for" if not fast else _why_not_fast(language)
    if not reason:
        table: Any = language.get_input_embeddings()
        expected = _probe_logits(
            TransformersDecoder(language), table
        )  # before its weights are let go of
        decoder = LlamaDecoder(language, slots, bits)
        distance = float((_probe_logits(decoder, table) - expected).norm() / expected.norm())
        limit = _INT8_LIMIT if bits == "int8" else _TOLERANCES[decoder.dtype]
        if distance <= limit:
            return decoder
        reason = f"the fast one's logits are {distance:.2g} of their size from it, over {limit}"
    if bits == "int8":
        raise UsageError(f"int8 is not possible here: {reason}; leave --quantize away")
    if fast:
        _log.info("answers come by transformers' own decoder: %s", reason)
    return TransformersDecoder(language)


def _why_not_fast(language: PreTrainedModel) -> str:
    """Say why a model has no fast decoder; nothing if it has one."""
    if language.device.type != "cpu":
        return f"the model is on {language.device}, the fast one is for processors"
    if language.dtype not in _TOLERANCES:
        return f"its weights are in {language.dtype}"
    return LlamaDecoder.unsupported_reason(language)


@torch.inference_mode()
def _probe_logits(decoder: Decoder, table: Any) -> Tensor:  # noqa: ANN401 - an embedding
    """Return logits of a few tokens, read together and one by one, (3, vocabulary)."""
    # all over the vocabulary: tokens at its beginning are special ones, between which models compute anything
    ids = torch.arange(1, _PROBE + 1) * len(table.weight) // (_PROBE + 2)
    logits = [decoder.prefill(0, table(ids[:-2]))]
    logits += [decoder.decode([0], [int(token)])[0] for token in ids[-2:]]
    decoder.reset(0)
    return torch.stack(logits).float()


def pack_vision_weights(model: Llava) -> None:
    """Lay out the weights of tower and projector for the processor they are on; what they give stays the same."""
    if model.embedding_weight.device.type == "cpu":
        pack_layers(model.vision.tower)
        pack_layers(model.projector)
