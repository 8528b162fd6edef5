"""Choice of the fastest decoder that gives the same logits as the language model itself."""

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.devices import has_packed_weights, is_cpu
from caldera.errors import UsageError
from caldera.inference.decoder import Decoder, TransformersDecoder
from caldera.inference.llama_decoder import LlamaDecoder
from caldera.inference.packed_linear import Quantization, pack_layers
from caldera.model.llava import Llava

_log = logging.getLogger(__name__)

_NUM_PROBE_TOKENS = 11
"""Tokens for which the logits of two decoders are compared."""

_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Maximum distance from the model's own logits, relative to their norm: rounding, with a margin."""

_INT8_TOLERANCE = 0.3
"""The same for int8. It detects a wrong model, not a loss of quality."""


def choose_decoder(
    language: PreTrainedModel,
    slots: int,
    *,
    quantization: Quantization = "as stored",
    allow_fast: bool = True,
) -> Decoder:
    """Return a decoder of at most `slots` sequences.

    Args:
        language: Any decoder-only language model of transformers.
        slots: Maximum number of sequences.
        quantization: Quantization of the weights.
        allow_fast: Use a faster decoder than transformers' own if there is one.

    Raises:
        UsageError: int8 is requested, but not possible for this model or device.
    """
    reason = _why_not_fast(language, quantization) if allow_fast else "it is disabled"
    if not reason:
        table = language.get_input_embeddings()
        # before the fast decoder releases the model's weights
        expected = _probe_logits(TransformersDecoder(language), table)
        decoder = LlamaDecoder(language, slots, quantization)
        distance = float((_probe_logits(decoder, table) - expected).norm() / expected.norm())
        limit = _INT8_TOLERANCE if quantization == "int8" else _TOLERANCES[decoder.dtype]
        if distance <= limit:
            return decoder
        reason = (
            f"the fast decoder's logits differ by {distance:.2g} of their norm, more than {limit}"
        )
    if quantization == "int8":
        raise UsageError(f"int8 is not possible here: {reason}; remove --quantize")
    if allow_fast:
        _log.info("answers use transformers' own decoder: %s", reason)
    return TransformersDecoder(language)


def _why_not_fast(language: PreTrainedModel, quantization: Quantization) -> str:
    """Return why a model has no fast decoder; empty if it has one."""
    if not is_cpu(language.device):
        return f"the model is on {language.device}, and the fast decoder is for CPUs"
    if quantization == "int8" and not has_packed_weights(language.device):
        return "this build of torch has no oneDNN"
    if language.dtype not in _TOLERANCES:
        return f"its weights are in {language.dtype}"
    return LlamaDecoder.unsupported_reason(language)


@torch.inference_mode()
def _probe_logits(decoder: Decoder, table: nn.Module) -> Tensor:
    """Return logits of a few tokens, prefilled together and decoded one by one, (3, vocabulary)."""
    # from the whole vocabulary: the first ids are special tokens, for which logits can be arbitrary
    num_rows = table.get_parameter("weight").shape[0]
    ids = torch.arange(1, _NUM_PROBE_TOKENS + 1) * num_rows // (_NUM_PROBE_TOKENS + 2)
    logits = [decoder.prefill(0, table(ids[:-2]))]
    logits += [decoder.decode([0], [int(token)])[0] for token in ids[-2:]]
    decoder.reset(0)
    return torch.stack(logits).float()


def pack_vision_weights(model: Llava) -> None:
    """Pack the weights of tower and projector for the CPU they are on; their outputs stay the same."""
    if has_packed_weights(model.embedding_weight.device):
        pack_layers(model.vision.tower)
        pack_layers(model.projector)
