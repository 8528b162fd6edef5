"""Weights of a language model and its tokenizer in, both with a token for pictures out."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from caldera.errors import ModelFolderError
from caldera.model.merging import grown
from caldera.model.tensor_files import Weight
from caldera.model.tokenizer import add_picture_tokens
from caldera.model.weights import LANGUAGE

_MULTIPLE = 64
"""A table of words that grows does so to a multiple of this (spec 8.2)."""


def grow(
    weights: Mapping[str, Weight],
    language: PretrainedConfig,
    tokenizer: PreTrainedTokenizerFast,
    source: Path,
) -> tuple[dict[str, Weight], PretrainedConfig]:
    """Give tokenizer and tables of words a token for pictures; new rows are the mean of the old (spec 8.2).

    Raises:
        ModelFolderError: The tokenizer has more words than the model, or a table is missing.
    """
    found = dict(weights)
    tables = _tables(language)
    name = LANGUAGE + tables[0]
    if name not in found:
        raise ModelFolderError(f"the weights in {source} lack {tables[0]}")
    rows = found[name].shape[0]
    if len(tokenizer) > rows:
        raise ModelFolderError(
            f"the tokenizer of {source} has {len(tokenizer)} words, its model only {rows} rows; they do not fit"
        )
    add_picture_tokens(tokenizer)
    if len(tokenizer) > rows:
        wanted = math.ceil(len(tokenizer) / _MULTIPLE) * _MULTIPLE
        for table in tables:
            if (table := LANGUAGE + table) in found:
                if found[table].shape[0] != rows or rows != language.vocab_size:
                    raise ModelFolderError(
                        f"the weight {table} in {source} has shape {found[table].shape}; the config needs "
                        f"{language.vocab_size} rows"
                    )
                found[table] = grown(found[table], wanted)
        language = type(language).from_dict({**language.to_dict(), "vocab_size": wanted})
    language.pad_token_id = tokenizer.pad_token_id
    return found, language


def _tables(language: PretrainedConfig) -> list[str]:
    """Name the weights of a language model that have a row for each word."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(language)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFolderError(
            f"transformers cannot build the {language.model_type!r} of the config: {reason}"
        ) from None
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    where = {id(module): name for name, module in model.named_modules()}
    return [f"{where[id(layer)]}.weight" for layer in layers if layer is not None]
