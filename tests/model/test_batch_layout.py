"""However rows are laid, a language model gives what it gives to each conversation alone, or it is not used so."""

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
    made: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    return made


def positions() -> Tensor:
    """Return the place of each token in its own conversation."""
    parts = []
    for row in ROWS:
        parts.append(torch.arange(row.prefix))
        parts += [torch.arange(length) + row.prefix for length in row.branches]
    return torch.cat(parts)


def alone(model: PreTrainedModel, embedded: Tensor) -> Tensor:
    """Return the states of each conversation alone, with its own copy of the prefix, in the order of the tokens."""
    states = torch.zeros(TOKENS, 12)
    for row in ROWS:
        at = row.start + row.prefix
        for length in row.branches:
            places = [*range(row.start, row.start + row.prefix), *range(at, at + length)]
            states[places] = model.base_model(
                inputs_embeds=embedded[None, places]
            ).last_hidden_state[0]
            at += length
    return states


def states(model: PreTrainedModel, embedded: Tensor, arrangement: BatchLayout) -> Tensor:
    """Return the states in an arrangement."""
    set_attention(model, arrangement, "eager")
    return run_language_model(model, embedded, positions(), ROWS, arrangement)


@pytest.mark.parametrize("family", [*PACKED, *OTHERS])
@torch.no_grad()
def test_the_arrangement_found_gives_what_each_conversation_gives(family: str) -> None:
    """Each family is laid as the table says, and its hidden states are those of the conversations alone."""
    config, expected = OTHERS.get(family) or (PACKED[family], "packed")
    model = language(config)
    embedded = torch.randn(TOKENS, 12, generator=torch.Generator().manual_seed(1))
    wanted = alone(model, embedded)
    assert choose_batch_layout(model, "eager") == expected
    assert not model.training
    if expected != "padded":
        given = states(model, embedded, expected)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 3, 100])
@pytest.mark.parametrize("kept_keys", [0, 8])
@pytest.mark.parametrize("window", [None, 4])
def test_blocks_of_any_size_give_the_same_gradients(
    queries: int, kept_keys: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rows are cut, and whether weights are kept or computed again: those of each conversation alone."""
    monkeypatch.setattr(attention_blocks, "_QUERIES", queries)
    monkeypatch.setattr(packed_attention, "_SAVE_WEIGHTS_LIMIT", kept_keys)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    model = language(MistralConfig(**{**SMALL, **heads}, sliding_window=window))
    rng = torch.Generator().manual_seed(1)
    embedded = torch.randn(TOKENS, 12, generator=rng, requires_grad=True)
    weights = torch.randn(TOKENS, 12, generator=rng)  # of a loss
    for row in ROWS:
        weights[row.start : row.start + row.prefix] = 0  # alone, a prefix stands in several rows
    moved = [embedded, *model.base_model.parameters()]
    found = []
    for packed in (True, False):
        given = states(model, embedded, "packed") if packed else alone(model, embedded)
        gradients = torch.autograd.grad((given * weights).sum(), moved, allow_unused=True)
        found.append([given * (weights != 0), *(each for each in gradients if each is not None)])
        set_attention(model, "padded", "eager")
    assert len(found[0]) == len(found[1]) > 15
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def seen_by_hand(rows: Sequence[PackedRow]) -> Tensor:
    """Return which query sees which key, (tokens, tokens), from the rule in words."""
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for row in rows:
        end = row.start + row.prefix
        for query in range(row.start, end):
            seen[query, row.start : query + 1] = True
        begin = end
        for length in row.branches:
            for query in range(begin, begin + length):
                seen[query, row.start : end] = True
                seen[query, begin : query + 1] = True
            begin += length
    return seen


def test_the_mask_for_flex_attention_is_the_same() -> None:
    """What is told to GPUs; tokens behind the last row see no real one and are seen by none."""
    packing = AttentionPlan(ROWS, torch.cat([positions(), torch.zeros(5, dtype=torch.long)]))
    told = create_mask(packing.mask_rule(), 1, 1, TOKENS + 5, TOKENS + 5, device="cpu")[0, 0]
    places = torch.arange(TOKENS)
    assert torch.equal(told[:TOKENS, :TOKENS], seen_by_hand(ROWS))
    assert torch.equal(packing.attends(places[:, None], places[None, :]), seen_by_hand(ROWS))
    assert not told[:TOKENS, TOKENS:].any()
    assert not told[TOKENS:, :TOKENS].any()
    assert told[TOKENS:].any(dim=1).all()


def test_few_scores_are_computed_in_vain() -> None:
    """Of an image's prefix with ten short questions, and of long rows, most scores count."""
    for row in (
        PackedRow(0, 600, (20,) * 10),
        PackedRow(0, 0, (2000,)),
        PackedRow(0, 256, (300, 300)),
    ):
        lengths = [row.prefix, *row.branches]
        count = sum(n * (n + 1) // 2 for n in lengths) + row.prefix * sum(row.branches)
        packing = AttentionPlan([row], torch.arange(row.length + 1))
        scores = sum(each.queries.numel() * each.keys.shape[1] for each in packing.buckets)
        assert scores < 1.45 * count


def test_padded_rows_have_no_prefix() -> None:
    """The mistake is named."""
    model = language(LANGUAGES["llama"])
    with pytest.raises(ValueError, match="padded rows have no prefix"):
        states(model, torch.zeros(TOKENS, 12), "padded")
