"""LoRA, delta, grown embeddings."""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.config import read_json
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.tokenizer import add_image_token
from caldera.formats.weight_names import LANGUAGE

ADAPTER_CONFIG = "adapter_config.json"

_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"

_PEFT = "base_model.model."
"""What peft puts before the names of the model it wraps."""

_NOT_MERGED: dict[str, tuple[object, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""peft's settings by which an adapter is more than two factors a layer, and the values by which it is not. Other ways
to start, such as PiSSA's, take what the factors start with out of the base, so theirs is another base."""


def grow_rows(weight: LazyWeight, rows: int) -> LazyWeight:
    """Return a table of words with rows added up to `rows`, each the mean of the old ones."""

    def read() -> Tensor:
        old = weight.read()  # (words, width)
        mean = old.mean(dim=0, dtype=torch.float32).to(old.dtype)  # (width,)
        return torch.cat([old, mean.expand(rows - len(old), -1)])  # (rows, width)

    return LazyWeight((rows, *weight.shape[1:]), weight.dtype, read)


def cast(weight: LazyWeight, dtype: torch.dtype) -> LazyWeight:
    """Return a weight in another precision."""
    return LazyWeight(weight.shape, dtype, lambda: weight.read().to(dtype))


def first_rows(weight: LazyWeight, rows: int) -> LazyWeight:
    """Return a table without the rows from `rows` on."""
    return LazyWeight((rows, *weight.shape[1:]), weight.dtype, lambda: weight.read()[:rows])


def add_delta(
    base: Mapping[str, LazyWeight], delta: Mapping[str, LazyWeight], source: Path
) -> dict[str, LazyWeight]:
    """Add what changed to a base, as LLaVA's first weights were given out.

    A table of words with more rows than the base's is added where both have rows; what the base lacks is taken as it is
    (spec 3.6).

    Raises:
        ModelFolderError: A weight is missing, or has another shape.
    """
    if missing := sorted(base.keys() - delta.keys()):
        raise ModelFormatError(f"the delta in {source} lacks {missing[:3]}, which its base has")
    return {
        name: _sum(base[name], each, name, source) if name in base else each
        for name, each in delta.items()
    }


def _sum(base: LazyWeight, change: LazyWeight, name: str, source: Path) -> LazyWeight:
    """Return a changed weight; it is added in fp32."""
    table = len(change.shape) == 2 and name.endswith(("embed_tokens.weight", "lm_head.weight"))
    longer = table and change.shape[0] > base.shape[0] and change.shape[1:] == base.shape[1:]
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
    """Fold low-rank factors into a base: W + scale * B A, in fp32, in each layer that has them.

    Args:
        base: By its names on disk.
        factors: By peft's names.
        folder: Of the adapter, with its settings.
        rename: Brings the names of the model that peft wrapped to the base's.

    Raises:
        ModelFolderError: A factor is missing, has another shape, or is for a layer that the base lacks; or the settings
            ask for more than factors.
    """
    rank, scale = _settings(folder)
    merged = dict(base)
    stems = {name.removesuffix(_DOWN).removesuffix(_UP) for name in factors}
    for stem in sorted(stems):
        pair = [factors.get(f"{stem}{ending}") for ending in (_DOWN, _UP)]
        if pair[0] is None or pair[1] is None or not stem.startswith(_PEFT):
            raise ModelFormatError(f"the adapter in {folder} has no pair of factors for {stem}")
        name = rename(f"{stem.removeprefix(_PEFT)}.weight")
        if name not in base:
            raise ModelFormatError(
                f"the adapter in {folder} changes {stem.removeprefix(_PEFT)}, which its base does not have"
            )
        merged[name] = _merge_pair(base[name], pair[0], pair[1], scale)
        wanted = ((rank, base[name].shape[-1]), (base[name].shape[0], rank))
        if (found := (pair[0].shape, pair[1].shape)) != wanted:
            raise ModelFormatError(
                f"the adapter in {folder} has factors of shapes {found} for {stem.removeprefix(_PEFT)}; rank {rank} "
                f"and the base need {wanted}"
            )
    return merged


def _merge_pair(base: LazyWeight, down: LazyWeight, up: LazyWeight, scale: float) -> LazyWeight:
    """Return a weight with its factors folded in."""

    def read() -> Tensor:
        return torch.addmm(
            base.read().float(), up.read().float(), down.read().float(), alpha=scale
        ).to(base.dtype)

    return LazyWeight(base.shape, base.dtype, read)


def check_plain_lora(said: Mapping[str, Any], file: Path, *, besides: Collection[str] = ()) -> None:
    """Refuse the settings of an adapter that is more than two factors a layer, but for those in `besides`.

    Raises:
        ModelFolderError: The adapter is of a kind that is not merged; the message names the setting.
    """
    if said.get("peft_type") != "LORA":
        raise ModelFormatError(
            f"{file} has peft_type {said.get('peft_type')!r}; only LORA is merged"
        )
    for name, plain in _NOT_MERGED.items():
        if name in said and name not in besides and said[name] not in plain:
            raise ModelFormatError(f"{file} has {name} {said[name]!r}, which is not merged")


def _settings(folder: Path) -> tuple[int, float]:
    """Read an adapter's rank, and what its product is scaled by.

    Raises:
        ModelFolderError: They are missing, or the adapter is of a kind that is not merged.
    """
    said: dict[str, Any] = read_json(folder / ADAPTER_CONFIG)
    file = folder / ADAPTER_CONFIG
    check_plain_lora(said, file)
    rank, alpha = said.get("r"), said.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise ModelFormatError(
            f"{file} has r {rank!r} and lora_alpha {alpha!r}; they must be numbers"
        )
    assert isinstance(alpha, int | float)
    return rank, alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)


_MULTIPLE = 64
"""A table of words that grows does so to a multiple of this (spec 8.2)."""


def grow_embeddings(
    weights: Mapping[str, LazyWeight],
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    source: Path,
) -> tuple[dict[str, LazyWeight], PretrainedConfig]:
    """Give tokenizer and tables of words a token for images; new rows are the mean of the old (spec 8.2).

    Raises:
        ModelFolderError: The tokenizer has more words than the model, or a table is missing.
    """
    found = dict(weights)
    tables = _embedding_names(language)
    name = LANGUAGE + tables[0]
    if name not in found:
        raise ModelFormatError(f"the weights in {source} lack {tables[0]}")
    rows = found[name].shape[0]
    if len(tokenizer) > rows:
        raise ModelFormatError(
            f"the tokenizer of {source} has {len(tokenizer)} words, its model only {rows} rows; they do not fit"
        )
    add_image_token(tokenizer)
    if len(tokenizer) > rows:
        wanted = math.ceil(len(tokenizer) / _MULTIPLE) * _MULTIPLE
        for table in tables:
            if (table := LANGUAGE + table) in found:
                if found[table].shape[0] != rows or rows != language.vocab_size:
                    raise ModelFormatError(
                        f"the weight {table} in {source} has shape {found[table].shape}; the config needs "
                        f"{language.vocab_size} rows"
                    )
                found[table] = grow_rows(found[table], wanted)
        language = type(language).from_dict({**language.to_dict(), "vocab_size": wanted})
    language.pad_token_id = tokenizer.pad_token_id
    return found, language


def _embedding_names(language: PretrainedConfig) -> list[str]:
    """Name the weights of a language model that have a row for each word."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(language)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(
            f"transformers cannot build the {language.model_type!r} of the config: {reason}"
        ) from None
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    where = {id(module): name for name, module in model.named_modules()}
    return [f"{where[id(layer)]}.weight" for layer in layers if layer is not None]
