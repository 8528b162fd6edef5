"""Merging of LoRA factors and deltas into base weights, and growth of embedding tables, one weight at a time."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.config import build_on_meta_device, read_json
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.tokenizer import add_image_token
from caldera.formats.weight_names import LANGUAGE

ADAPTER_CONFIG = "adapter_config.json"

VOCAB_MULTIPLE = 64
"""Multiple that the rows of a grown embedding table are filled up to, as in llava-hf's folders."""

PEFT_PREFIX = "base_model.model."
"""Prefix that peft puts before the names of the model it wraps."""

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"

_PLAIN_VALUES: dict[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    # Other initializations, such as PiSSA's, subtract the initial factors from the base, so that the base differs.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""Settings of peft, and their values for an adapter that is no more than two factors per layer."""


def cast(weight: LazyWeight, dtype: torch.dtype) -> LazyWeight:
    """Return a weight in another precision; integers, such as a batch norm's counter, stay as they are."""
    if not weight.dtype.is_floating_point:
        return weight
    return LazyWeight(weight.shape, dtype, lambda: weight.read().to(dtype))


def first_rows(weight: LazyWeight, rows: int) -> LazyWeight:
    """Return the first `rows` rows of an embedding table."""
    return LazyWeight((rows, *weight.shape[1:]), weight.dtype, lambda: weight.read()[:rows])


def add_delta(
    base: Mapping[str, LazyWeight], delta: Mapping[str, LazyWeight], source: Path
) -> dict[str, LazyWeight]:
    """Add delta weights, the form in which LLaVA v1 was released, to their base.

    An embedding table with more rows than the base's is added where both have rows; weights that the base lacks are
    taken as they are.

    Raises:
        ModelFormatError: A weight is missing, or has another shape.
    """
    if missing := sorted(base.keys() - delta.keys()):
        raise ModelFormatError(f"the delta in {source} lacks {missing[:3]}, which its base has")
    return {
        name: _sum(base[name], weight, name, source) if name in base else weight
        for name, weight in delta.items()
    }


def _sum(base: LazyWeight, change: LazyWeight, name: str, source: Path) -> LazyWeight:
    """Return base plus change, added in fp32."""
    is_table = len(change.shape) == 2 and name.endswith(("embed_tokens.weight", "lm_head.weight"))
    longer = is_table and change.shape[0] > base.shape[0] and change.shape[1:] == base.shape[1:]
    if change.shape != base.shape and not longer:
        raise ModelFormatError(
            f"the delta's {name} in {source} has shape {change.shape}, its base's {base.shape}; it is for another base"
        )

    def read() -> Tensor:
        sums = change.read().to(torch.float32, copy=True)
        sums[: base.shape[0]] += base.read()
        return sums.to(change.dtype)

    return LazyWeight(change.shape, change.dtype, read)


def merge_lora(
    base: Mapping[str, LazyWeight],
    factors: Mapping[str, LazyWeight],
    folder: Path,
    rename: Callable[[str], str],
) -> dict[str, LazyWeight]:
    """Merge LoRA factors into a base: W + scale * B A, in fp32, in each layer that has them.

    Args:
        base: Weights by their names on disk.
        factors: Factors by peft's names.
        folder: The adapter's folder, with its settings.
        rename: Maps names of the model that peft wrapped to the base's.

    Raises:
        ModelFormatError: A factor is missing, has another shape, or is for a layer that the base lacks; or the adapter
            is more than factors.
    """
    rank, scale = _read_rank_and_scale(folder)
    merged = dict(base)
    stems = {name.removesuffix(_DOWN).removesuffix(_UP) for name in factors}
    for stem in sorted(stems):
        down, up = factors.get(f"{stem}{_DOWN}"), factors.get(f"{stem}{_UP}")
        if down is None or up is None or not stem.startswith(PEFT_PREFIX):
            raise ModelFormatError(f"the adapter in {folder} has no pair of factors for {stem}")
        layer = stem.removeprefix(PEFT_PREFIX)
        name = rename(f"{layer}.weight")
        if name not in base:
            raise ModelFormatError(
                f"the adapter in {folder} changes {layer}, which its base does not have"
            )
        expected = ((rank, base[name].shape[-1]), (base[name].shape[0], rank))
        if (down.shape, up.shape) != expected:
            raise ModelFormatError(
                f"the adapter in {folder} has factors of shapes {(down.shape, up.shape)} for {layer}; rank {rank} "
                f"and the base need {expected}"
            )
        merged[name] = _merge_pair(base[name], down, up, scale)
    return merged


def _merge_pair(base: LazyWeight, down: LazyWeight, up: LazyWeight, scale: float) -> LazyWeight:
    """Return a weight with its LoRA factors merged."""

    def read() -> Tensor:
        return torch.addmm(
            base.read().float(), up.read().float(), down.read().float(), alpha=scale
        ).to(base.dtype)

    return LazyWeight(base.shape, base.dtype, read)


def check_plain_lora(
    config: Mapping[str, Any], file: Path, *, allowed: Collection[str] = ()
) -> None:
    """Reject an adapter that is more than two factors per layer; settings in `allowed` are not checked.

    Raises:
        ModelFormatError: The adapter is of a kind that is not merged; the message names the setting.
    """
    if config.get("peft_type") != "LORA":
        raise ModelFormatError(
            f"{file} has peft_type {config.get('peft_type')!r}; only LORA can be merged"
        )
    for name, values in _PLAIN_VALUES.items():
        if name in config and name not in allowed and config[name] not in values:
            raise ModelFormatError(f"{file} has {name} {config[name]!r}, which cannot be merged")


def _read_rank_and_scale(folder: Path) -> tuple[int, float]:
    """Read an adapter's rank, and the scale of its product."""
    file = folder / ADAPTER_CONFIG
    config: dict[str, Any] = read_json(file)
    check_plain_lora(config, file)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ModelFormatError(
            f"{file} has r {rank!r} and lora_alpha {alpha!r}; they must be numbers"
        )
    assert isinstance(alpha, int | float)
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def padded_vocab_size(num_tokens: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """Return the rows of an embedding table that grows for `num_tokens`."""
    return math.ceil(num_tokens / multiple) * multiple


def mean_row(table: Tensor) -> Tensor:
    """Return the mean of a table's rows, the start of each new row, computed in fp32."""
    return table.mean(dim=0, dtype=torch.float32).to(table.dtype)  # (width,)


def grow_rows(weight: LazyWeight, rows: int) -> LazyWeight:
    """Return an embedding table with rows added up to `rows`, each the mean of the old ones."""

    def read() -> Tensor:
        old = weight.read()  # (tokens, width)
        return torch.cat([old, mean_row(old).expand(rows - len(old), -1)])  # (rows, width)

    return LazyWeight((rows, *weight.shape[1:]), weight.dtype, read)


def grow_embeddings(
    weights: Mapping[str, LazyWeight],
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    source: Path,
    vocab_multiple: int = VOCAB_MULTIPLE,
) -> tuple[dict[str, LazyWeight], PretrainedConfig]:
    """Add the image token to a tokenizer, and rows for it to the embedding tables, without reading them.

    A table that grows gets a multiple of `vocab_multiple` rows.

    Raises:
        ModelFormatError: The tokenizer has more tokens than the model, or a table is missing.
    """
    grown = dict(weights)
    tables = _embedding_names(language)
    if LANGUAGE + tables[0] not in grown:
        raise ModelFormatError(f"the weights in {source} lack {tables[0]}")
    rows = grown[LANGUAGE + tables[0]].shape[0]
    if len(tokenizer) > rows:
        raise ModelFormatError(
            f"the tokenizer of {source} has {len(tokenizer)} tokens, its model only {rows} rows; they do not fit"
        )
    add_image_token(tokenizer)
    if len(tokenizer) > rows:
        new_rows = padded_vocab_size(len(tokenizer), vocab_multiple)
        for table in (LANGUAGE + name for name in tables):
            if table not in grown:
                continue
            if grown[table].shape[0] != rows or rows != language.vocab_size:
                raise ModelFormatError(
                    f"the weight {table} in {source} has shape {grown[table].shape}; the config needs "
                    f"{language.vocab_size} rows"
                )
            grown[table] = grow_rows(grown[table], new_rows)
        language = type(language).from_dict({**language.to_dict(), "vocab_size": new_rows})
    language.pad_token_id = tokenizer.pad_token_id
    return grown, language


def _embedding_names(language: PretrainedConfig) -> list[str]:
    """Return the names of a language model's weights that have a row for each token."""
    model = build_on_meta_device(AutoModelForCausalLM, language)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return [f"{names[id(layer)]}.weight" for layer in layers if layer is not None]
