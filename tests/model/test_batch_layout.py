"""In the chosen batch layout a language model gives each conversation the hidden states that it has alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from caldera.batches.packing import PackedRow
from caldera.model import attention_blocks, packed_attention
from caldera.model.attention_blocks import AttentionPlan
from caldera.model.batch_layout import (
    BatchLayout,
    choose_batch_layout,
    run_language_model,
    set_attention,
)
from tests.tiny_languages import LANGUAGES, WIDTHS

SMALL: dict[str, Any] = {**WIDTHS, "vocab_size": 50}
OLD: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
PACKED: dict[str, PretrainedConfig] = {
    **LANGUAGES,
    "mistral of a window": MistralConfig(**SMALL, sliding_window=5),
    "gemma3 of a window": Gemma3TextConfig(**SMALL, head_dim=8, sliding_window=5),
    "granite": GraniteConfig(**SMALL),
    "cohere": CohereConfig(**SMALL),
    "olmo2": Olmo2Config(**SMALL),
    "smollm3": SmolLM3Config(**SMALL),
    "starcoder2": Starcoder2Config(**SMALL),
    "phi": PhiConfig(**{**SMALL, "num_key_value_heads": 2, "partial_rotary_factor": 0.67}),
    "gpt2 without dropout": GPT2Config(
        vocab_size=50,
        n_embd=12,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
    ),
    "opt": OPTConfig(**OLD, word_embed_proj_dim=12, ffn_dim=22, dropout=0.0),
    "gpt neox": GPTNeoXConfig(**OLD, intermediate_size=22, max_position_embeddings=256),
}
OTHERS: dict[str, tuple[PretrainedConfig, BatchLayout]] = {
    "falcon": (FalconConfig(**OLD), "masked"),
    "stablelm": (StableLmConfig(**{**SMALL, "num_key_value_heads": 2, "partial_rotary_factor": 0.67}), "masked"),
    "gpt2": (GPT2Config(vocab_size=50, n_embd=12, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2), "masked"),
    "gemma2": (Gemma2Config(**SMALL, head_dim=8), "padded"),
    "bloom": (BloomConfig(**OLD), "padded"),
    "mamba": (MambaConfig(**OLD, state_size=4), "padded"),
}  # fmt: skip

ROWS = (
    PackedRow(0, 11, (4, 9, 2)),
    PackedRow(26, 0, (7,)),
    PackedRow(33, 3, (1, 1)),
    PackedRow(38, 0, (1,)),
)
TOKENS = 39


def language(config: PretrainedConfig) -> PreTrainedModel:
    """Return a random language model in evaluation mode."""
    torch.manual_seed(2)
    config.update({"vocab_size": 50})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.eval()


def positions() -> Tensor:
    """Return the position of each token in its own conversation."""
    parts = []
    for row in ROWS:
        parts.append(torch.arange(row.prefix))
        parts += [torch.arange(length) + row.prefix for length in row.branches]
    return torch.cat(parts)


def alone(model: PreTrainedModel, embedded: Tensor) -> Tensor:
    """Return the hidden states of each conversation alone, with its own prefix, in the order of the tokens."""
    states = torch.zeros(TOKENS, 12)
    for row in ROWS:
        start = row.start + row.prefix
        for length in row.branches:
            indices = [*range(row.start, row.start + row.prefix), *range(start, start + length)]
            output = model.base_model(inputs_embeds=embedded[None, indices])
            states[indices] = output.last_hidden_state[0]
            start += length
    return states


def states(model: PreTrainedModel, embedded: Tensor, layout: BatchLayout) -> Tensor:
    """Return the hidden states in a batch layout."""
    set_attention(model, layout, "eager")
    return run_language_model(model, embedded, positions(), ROWS, layout)


@pytest.mark.parametrize("family", [*PACKED, *OTHERS])
@torch.no_grad()
def test_the_chosen_batch_layout_gives_the_states_of_each_conversation(family: str) -> None:
    """Each family has the batch layout of the table, and its hidden states are those of the conversations alone."""
    config, layout = OTHERS.get(family) or (PACKED[family], "packed")
    model = language(config)
    embedded = torch.randn(TOKENS, 12, generator=torch.Generator().manual_seed(1))
    expected = alone(model, embedded)
    assert choose_batch_layout(model, "eager") == layout
    assert not model.training
    if layout != "padded":
        actual = states(model, embedded, layout)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 3, 100])
@pytest.mark.parametrize("save_weights_limit", [0, 8])
@pytest.mark.parametrize("window", [None, 4])
def test_blocks_of_any_size_give_the_same_gradients(
    queries: int, save_weights_limit: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rows are split, and whether weights are saved or recomputed: those of each conversation alone."""
    monkeypatch.setattr(attention_blocks, "_QUERIES", queries)
    monkeypatch.setattr(packed_attention, "_SAVE_WEIGHTS_LIMIT", save_weights_limit)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    model = language(MistralConfig(**{**SMALL, **heads}, sliding_window=window))
    rng = torch.Generator().manual_seed(1)
    embedded = torch.randn(TOKENS, 12, generator=rng, requires_grad=True)
    loss_weights = torch.randn(TOKENS, 12, generator=rng)
    for row in ROWS:
        # Alone, a prefix is in several rows.
        loss_weights[row.start : row.start + row.prefix] = 0
    inputs = [embedded, *model.base_model.parameters()]
    results = []
    for packed in (True, False):
        hidden = states(model, embedded, "packed") if packed else alone(model, embedded)
        gradients = torch.autograd.grad((hidden * loss_weights).sum(), inputs, allow_unused=True)
        used = [gradient for gradient in gradients if gradient is not None]
        results.append([hidden * (loss_weights != 0), *used])
        set_attention(model, "padded", "eager")
    assert len(results[0]) == len(results[1]) > 15
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_padded_blocks_have_finite_gradients_in_fp16() -> None:
    """Queries that only fill a block attend to nothing, as all keys of this row fit into it."""
    row = PackedRow(0, 3, (5,))
    plan = AttentionPlan([row], torch.cat([row.positions, torch.zeros(3, dtype=torch.long)]))
    rng = torch.Generator().manual_seed(1)
    tables = [
        torch.randn(1, heads, 11, 16, generator=rng).half().requires_grad_() for heads in (4, 2, 2)
    ]
    query, key, value = tables
    attended, _ = packed_attention.packed_attention(
        torch.nn.Module(), query, key, value, None, packing=plan
    )
    attended[:, :8].float().square().sum().backward()
    for table in tables:
        assert table.grad is not None
        assert table.grad[:, :, :8].isfinite().all()


def expected_mask(rows: Sequence[PackedRow]) -> Tensor:
    """Return which query attends to which key, (tokens, tokens), computed token by token."""
    mask = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for row in rows:
        end = row.start + row.prefix
        for query in range(row.start, end):
            mask[query, row.start : query + 1] = True
        start = end
        for length in row.branches:
            for query in range(start, start + length):
                mask[query, row.start : end] = True
                mask[query, start : query + 1] = True
            start += length
    return mask


def test_the_mask_for_flex_attention_is_the_same() -> None:
    """The padding after the last row attends to no token, and no token attends to it."""
    plan = AttentionPlan(ROWS, torch.cat([positions(), torch.zeros(5, dtype=torch.long)]))
    mask = create_mask(plan.mask_rule(), 1, 1, TOKENS + 5, TOKENS + 5, device="cpu")[0, 0]
    tokens = torch.arange(TOKENS)
    assert torch.equal(mask[:TOKENS, :TOKENS], expected_mask(ROWS))
    assert torch.equal(plan.attends(tokens[:, None], tokens[None, :]), expected_mask(ROWS))
    assert not mask[:TOKENS, TOKENS:].any()
    assert not mask[TOKENS:, :TOKENS].any()
    assert mask[TOKENS:].any(dim=1).all()


def test_few_masked_scores_are_computed() -> None:
    """For an image's prefix with ten short questions, and for long rows, most scores are used."""
    for row in (
        PackedRow(0, 600, (20,) * 10),
        PackedRow(0, 0, (2000,)),
        PackedRow(0, 256, (300, 300)),
    ):
        lengths = [row.prefix, *row.branches]
        count = sum(n * (n + 1) // 2 for n in lengths) + row.prefix * sum(row.branches)
        plan = AttentionPlan([row], torch.arange(row.length + 1))
        scores = sum(bucket.queries.numel() * bucket.keys.shape[1] for bucket in plan.buckets)
        assert scores < 1.45 * count


def test_padded_rows_have_no_prefix() -> None:
    """A prefix is an error that says so."""
    model = language(LANGUAGES["llama"])
    with pytest.raises(ValueError, match="padded rows have no prefix"):
        states(model, torch.zeros(TOKENS, 12), "padded")
