"""Batch layouts, the forms in which packed rows are passed to a language model.

- packed: all rows concatenated, without padding, with `packed_attention`
- flex: the same on GPUs, with FlexAttention's block mask (written, and its mask tested, but not run on a GPU here)
- masked: a padded row for each row, with a full attention mask
- padded: the same with a plain causal mask, for models that support no other; rows cannot have a prefix

All give the same numbers except for rounding. `choose_batch_layout` determines by trial which ones a model supports.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import pad
from transformers import PreTrainedModel

from caldera.batches.packing import PackedRow
from caldera.devices import has_flex_attention, has_packed_attention
from caldera.model.attention_blocks import AttentionPlan
from caldera.model.packed_attention import NAME

log = logging.getLogger(__name__)

BatchLayout = Literal["packed", "flex", "masked", "padded"]

_ROUND_TO = 64
"""Packed tokens are padded to a multiple of this, as the first steps at each new shape are slow."""

_PROBE_ROWS = (PackedRow(0, 3, (4, 2)), PackedRow(9, 0, (5,)))
"""Rows that a batch layout is tried with: one with a prefix and two branches, one without."""

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative difference that two batch layouts' hidden states may have, by the dtype of the weights."""


def supports_shared_prefixes(layout: BatchLayout) -> bool:
    """Return whether rows may have a prefix."""
    return layout != "padded"


def run_language_model(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    layout: BatchLayout,
) -> Tensor:
    """Return the last hidden states, (tokens, width).

    Args:
        language: Set to the attention of `layout` by `set_attention`.
        embedded: Its input, (tokens, width).
        positions: Position of each token in its own conversation, (tokens,).
        rows: Rows that cover the tokens.
        layout: Form in which the rows are passed.

    Raises:
        ValueError: A row has a prefix, which the layout does not support.
    """
    if layout in ("packed", "flex"):
        return _run_packed(language, embedded, positions, rows, flex=layout == "flex")
    return _run_padded(language, embedded, positions, rows, masked=layout == "masked")


def _run_packed(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    *,
    flex: bool,
) -> Tensor:
    """Run the language model on the concatenated rows."""
    num_tokens = len(embedded)
    # At least one, which AttentionPlan needs.
    padding = _ROUND_TO - num_tokens % _ROUND_TO
    padded = pad(embedded, (0, 0, 0, padding))
    padded_positions = pad(positions, (0, padding))
    plan = AttentionPlan(rows, padded_positions)
    attention: dict[str, Any]
    if flex:
        attention = {"attention_mask": block_mask(plan, len(padded_positions))}
    else:
        # A mask of four axes keeps transformers from building one of its own.
        attention = {"attention_mask": embedded.new_zeros(1, 1, 1, 1), "packing": plan}
    states = language.base_model(
        inputs_embeds=padded.unsqueeze(0),
        position_ids=padded_positions.unsqueeze(0),
        use_cache=False,
        **attention,
    ).last_hidden_state  # (1, padded tokens, width)
    return states[0, :num_tokens]


def block_mask(plan: AttentionPlan, tokens: int) -> BlockMask:
    """Return FlexAttention's mask over `tokens` tokens; the padding after the rows attends to itself."""
    return create_block_mask(plan.mask_rule(), 1, None, tokens, tokens, device=plan.device)


def _run_padded(
    language: PreTrainedModel,
    embedded: Tensor,
    positions: Tensor,
    rows: Sequence[PackedRow],
    *,
    masked: bool,
) -> Tensor:
    """Run the language model on padded rows."""
    width = max(row.length for row in rows)
    starts = torch.tensor([row.start for row in rows], device=embedded.device)
    lengths = torch.tensor([row.length for row in rows], device=embedded.device)
    offsets = torch.arange(width, device=embedded.device)
    is_token = offsets < lengths[:, None]  # (rows, width)
    indices = torch.where(is_token, starts[:, None] + offsets, 0)  # (rows, width)
    attention: dict[str, Any]
    if masked:
        plan = AttentionPlan(rows, pad(positions, (0, 1)))
        attends = plan.attends(indices[:, :, None], indices[:, None, :]) & is_token[:, None, :]
        eager = language.config._attn_implementation == "eager"
        mask = torch.where(attends, 0.0, torch.finfo(torch.float32).min) if eager else attends
        position_ids = positions[indices] * is_token
        attention = {"attention_mask": mask.unsqueeze(1), "position_ids": position_ids}
    else:
        if any(row.prefix for row in rows):
            raise ValueError("padded rows have no prefix; pack without sharing")
        attention = {} if bool(is_token.all()) else {"attention_mask": is_token.long()}
    states = language.base_model(
        inputs_embeds=embedded[indices] * is_token.unsqueeze(-1), use_cache=False, **attention
    ).last_hidden_state  # (rows, width, model width)
    return states[is_token]


def set_attention(language: PreTrainedModel, layout: BatchLayout, padded_attention: str) -> None:
    """Set a language model to the attention function of a batch layout.

    Args:
        language: Is changed.
        layout: Batch layout it will run with.
        padded_attention: transformers' name of the attention function for padded rows.

    Raises:
        ValueError: The model does not support the function.
    """
    packed_attention = {"packed": NAME, "flex": "flex_attention"}
    language.set_attn_implementation(packed_attention.get(layout, padded_attention))


@torch.no_grad()
def choose_batch_layout(language: PreTrainedModel, padded_attention: str) -> BatchLayout:
    """Return the fastest batch layout that gives the hidden states of padded rows, and set its attention.

    Args:
        language: Its attention is changed.
        padded_attention: transformers' name of the attention function for padded rows.
    """
    training = language.training
    language.eval()
    set_attention(language, "padded", padded_attention)
    expected = _probe(language, "padded")
    chosen: BatchLayout = "padded"
    for candidate in _candidates(language):
        if _supports(language, candidate, expected, padded_attention):
            chosen = candidate
            break
    set_attention(language, chosen, padded_attention)
    language.train(training)
    log.info("language model: batch layout %s", chosen)
    return chosen


def _candidates(language: PreTrainedModel) -> Iterator[BatchLayout]:
    """Yield the batch layouts to try, the fastest first."""
    if has_packed_attention(language.device):
        yield "flex" if has_flex_attention(language.device) else "packed"
    # A full mask is the same for all layers, so it cannot have a sliding window in some.
    if not language.config.to_dict().get("sliding_window"):
        yield "masked"


def _supports(
    language: PreTrainedModel, candidate: BatchLayout, expected: Tensor, padded_attention: str
) -> bool:
    """Return whether a model gives the expected hidden states with a batch layout."""
    try:
        set_attention(language, candidate, padded_attention)
        # Training mode first: it rejects what only training does, such as dropout of attention weights.
        language.train()
        _probe(language, candidate)
        language.eval()
        actual = _probe(language, candidate)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        log.debug("language model: not %s: %s", candidate, error)
        language.eval()
        return False
    difference = (actual - expected).norm() / expected.norm()
    return bool(difference <= _TOLERANCE.get(language.dtype, 1e-3))


def _probe(language: PreTrainedModel, layout: BatchLayout) -> Tensor:
    """Return the last hidden states of the probe rows, (tokens, width); with padded rows each branch is a row."""
    embeddings = language.get_input_embeddings().weight
    num_tokens = sum(row.length for row in _PROBE_ROWS)
    tokens = torch.arange(num_tokens, device=embeddings.device)  # type: ignore[arg-type]
    embedded = embeddings[tokens % len(embeddings)]  # type: ignore[arg-type,index]
    positions = torch.cat([row.positions for row in _PROBE_ROWS]).to(tokens.device)
    if supports_shared_prefixes(layout):
        return run_language_model(language, embedded, positions, _PROBE_ROWS, layout).float()
    states = torch.empty(embedded.shape, device=tokens.device)
    for row in _PROBE_ROWS:
        prefix = tokens[row.start : row.start + row.prefix]
        for branch in tokens[row.start + row.prefix : row.start + row.length].split(row.branches):
            indices = torch.cat([prefix, branch])
            unshared = [PackedRow(0, 0, (len(indices),))]
            states[indices] = run_language_model(
                language, embedded[indices], positions[indices], unshared, layout
            ).float()
    return states
