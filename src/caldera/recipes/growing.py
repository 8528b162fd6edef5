"""Weights of a language model and its tokenizer in, both with a token for images out."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.model.merging import grow_rows
from caldera.model.tensor_files import LazyWeight
from caldera.model.tokenizer import add_image_token
from caldera.model.weights import LANGUAGE

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
