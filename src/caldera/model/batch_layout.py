"""Rows of embedded tokens in, last hidden states out, in the arrangement that a language model takes.

- packed: all rows on one axis, without padding, with `packed_attention`
- flex: the same on GPUs, the mask told to FlexAttention (written, and its mask tested, but not run on a GPU here)
- masked: a padded row for each row, with a mask that is told in full
- padded: the same with a plain causal mask, for models that take no other; rows cannot have a prefix

All give the same numbers but for rounding. Which ones a model takes is not in a list: `find_arrangement` tries.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from caldera.batches.packing import PackedRow
from caldera.model.attention_blocks import AttentionPlan
from caldera.model.packed_attention import NAME

log = logging.getLogger(__name__)

BatchLayout = Literal["packed", "flex", "masked", "padded"]

_ROUND_TO = 64
"""Packed tokens are made a multiple of this, as the first steps at each new shape are slow."""

_PROBE = (PackedRow(0, 3, (4, 2)), PackedRow(9, 0, (5,)))
"""Rows that a model is asked about: one with a prefix and two branches, one without."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Share of their own size by which two arrangements' hidden states may differ, by the precision of the weights."""


def shares_prefixes(arrangement: BatchLayout) -> bool:
    """Tell whether rows may have a prefix."""
    return arrangement != "padded"


def run_language_model(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    arrangement: BatchLayout,
) -> Tensor:
    """Return the last hidden states, (tokens, width).

    Args:
        language: Set to the attention of `arrangement` by `attend_as`.
        embedded: Its input, (tokens, width).
        positions: Of each token in its own conversation, (tokens,).
        rows: They cover the tokens.
        arrangement: How the rows are laid.

    Raises:
        ValueError: A row has a prefix, but the arrangement has no place for one.
    """
    if arrangement in ("packed", "flex"):
        return _run_packed(language, embedded, positions, rows, flex=arrangement == "flex")
    return _run_padded(language, embedded, positions, rows, masked=arrangement == "masked")


def _run_packed(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    *,
    flex: bool,
) -> Tensor:
    """Lay rows behind one another."""
    tokens = len(embedded)
    more = _ROUND_TO - tokens % _ROUND_TO  # one at least, which a packing needs
    filled = torch.nn.functional.pad(embedded, (0, 0, 0, more))
    places = torch.nn.functional.pad(positions, (0, more))
    packing = AttentionPlan(rows, places)
    others: dict[str, Any]
    if flex:
        others = {"attention_mask": block_mask(packing, len(places))}
    else:  # a mask of four axes keeps transformers from making one of its own
        others = {"attention_mask": embedded.new_zeros(1, 1, 1, 1), "packing": packing}
    states = language.base_model(
        inputs_embeds=filled.unsqueeze(0),
        position_ids=places.unsqueeze(0),
        use_cache=False,
        **others,
    ).last_hidden_state  # (1, filled tokens, width)
    return states[0, :tokens]


def block_mask(packing: AttentionPlan, tokens: int) -> BlockMask:
    """Return the mask for FlexAttention on one axis of `tokens`; those behind the rows see each other."""
    return create_block_mask(packing.mask_rule(), 1, None, tokens, tokens, device=packing.device)


def _run_padded(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    *,
    masked: bool,
) -> Tensor:
    """Lay each row into a padded one."""
    width = max(row.length for row in rows)
    starts = torch.tensor([row.start for row in rows], device=embedded.device)
    lengths = torch.tensor([row.length for row in rows], device=embedded.device)
    offsets = torch.arange(width, device=embedded.device)
    real = offsets < lengths[:, None]  # (rows, width)
    places = torch.where(real, starts[:, None] + offsets, 0)  # (rows, width)
    others: dict[str, Any]
    if masked:
        packing = AttentionPlan(rows, torch.nn.functional.pad(positions, (0, 1)))
        seen = packing.sees(places[:, :, None], places[:, None, :]) & real[:, None, :]
        eager = language.config._attn_implementation == "eager"
        told = torch.where(seen, 0.0, torch.finfo(torch.float32).min) if eager else seen
        others = {"attention_mask": told.unsqueeze(1), "position_ids": positions[places] * real}
    else:
        if any(row.prefix for row in rows):
            raise ValueError("padded rows have no prefix; pack without sharing")
        others = {} if bool(real.all()) else {"attention_mask": real.long()}
    states = language.base_model(
        inputs_embeds=embedded[places] * real.unsqueeze(-1), use_cache=False, **others
    ).last_hidden_state  # (rows, width, model width)
    return states[real]


def set_attention(language: PreTrainedModel, arrangement: BatchLayout, otherwise: str) -> None:
    """Set a language model to the attention function of an arrangement.

    Args:
        language: Is changed.
        arrangement: What it will be given.
        otherwise: transformers' name of the function for padded rows.

    Raises:
        ValueError: The model does not have the function.
    """
    own = {"packed": NAME, "flex": "flex_attention"}
    language.set_attn_implementation(own.get(arrangement, otherwise))


@torch.no_grad()
def choose_batch_layout(language: PreTrainedModel, otherwise: str) -> BatchLayout:
    """Return the fastest arrangement in which a model gives what it gives to padded rows, and set its attention to it.

    Args:
        language: Its attention is changed.
        otherwise: transformers' name of the attention function for padded rows.
    """
    training = language.training
    language.eval()
    set_attention(language, "padded", otherwise)
    wanted = _probe(language, "padded")
    found: BatchLayout = "padded"
    for candidate in _candidates(language):
        if _supports(language, candidate, wanted, otherwise):
            found = candidate
            break
    set_attention(language, found, otherwise)
    language.train(training)
    log.info("language model: rows are %s", found)
    return found


def _candidates(language: PreTrainedModel) -> Iterator[BatchLayout]:
    """Yield the arrangements that are worth a try, the fastest first."""
    yield "flex" if language.device.type == "cuda" else "packed"
    if not language.config.to_dict().get("sliding_window"):  # a mask in full is one for all layers
        yield "masked"


def _supports(
    language: PreTrainedModel, candidate: BatchLayout, wanted: Tensor, otherwise: str
) -> bool:
    """Tell whether a model gives the wanted states in an arrangement."""
    try:
        set_attention(language, candidate, otherwise)
        language.train()
        _probe(language, candidate)  # refuses what only training does, such as dropout of weights
        language.eval()
        given = _probe(language, candidate)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as fault:
        log.debug("language model: not %s: %s", candidate, fault)
        language.eval()
        return False
    difference = (given - wanted).norm() / wanted.norm()
    return bool(difference <= _TOLERANCE.get(language.dtype, 1e-3))


def _probe(language: PreTrainedModel, arrangement: BatchLayout) -> Tensor:
    """Return the last hidden states of the rows to ask about, (tokens, width), each branch alone in padded rows."""
    table = language.get_input_embeddings().weight
    tokens = torch.arange(sum(row.length for row in _PROBE), device=table.device)  # type: ignore[arg-type]
    embedded = table[tokens % len(table)]  # type: ignore[arg-type,index]
    positions = torch.cat([row.positions for row in _PROBE]).to(tokens.device)
    if shares_prefixes(arrangement):
        return run_language_model(language, embedded, positions, _PROBE, arrangement).float()
    states = torch.empty(embedded.shape, device=tokens.device)
    for row in _PROBE:
        behind = tokens[row.start + row.prefix : row.start + row.length]
        for branch in behind.split(row.branches):
            places = torch.cat([tokens[row.start : row.start + row.prefix], branch])
            whole = [PackedRow(0, 0, (len(places),))]
            states[places] = run_language_model(
                language, embedded[places], positions[places], whole, arrangement
            ).float()
    return states
