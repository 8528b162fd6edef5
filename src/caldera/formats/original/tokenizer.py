"""Tokenizer of an exported folder, as the transformers 4.37 of LLaVA's own code reads it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from caldera.files.atomic import write_json
from caldera.formats.safetensors_files import check_inside_folder
from caldera.formats.sentencepiece_model import (
    SENTENCEPIECE_FILE,
    Prefix,
    from_fast,
    read_model,
    space_prefix,
    to_fast,
)
from caldera.formats.tokenizer import TOKENIZER_FILE, vocab_size_without_image
from caldera.templates.tokenization import LOW_LINE, start_ids

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")

_NO_SENTENCEPIECE = (
    "the tokenizer is not a SentencePiece model: LLaVA's own code loads it and answers with it, but its training code "
    "needs one (it asks for the setting legacy)"
)
_SPACES_IN_FRONT = (
    "LLaVA's own tokenizer puts a space in front of any text, this model's only where none is yet"
)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[str, ...]:
    """Write a tokenizer as it was before `add_image_token`; if that added the padding, `<unk>` pads.

    A tokenizer that is a SentencePiece model is written as one, and as LLaMA's class, whose slow form LLaVA's own code
    asks for. Any other is written as a fast tokenizer, which transformers 4.37 returns for a slow one.

    Returns:
        Notes for the user.

    Raises:
        ModelFormatError: Tokens before the image token would move, or the SentencePiece model is broken.
        UsageError: The package that reads SentencePiece models is not installed.
    """
    count = vocab_size_without_image(tokenizer)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
    config = _config(tokenizer, content, count)
    prefix = space_prefix(content)
    model = None if prefix is None else _sentencepiece(tokenizer, content, prefix)
    if prefix is None or model is None:
        write_json(folder / "tokenizer_config.json", config)
        notes = _make_readable(content)
        write_json(folder / TOKENIZER_FILE, content)
        return _NO_SENTENCEPIECE, *notes
    (folder / SENTENCEPIECE_FILE).write_bytes(model.SerializeToString())
    llama = {"tokenizer_class": "LlamaTokenizer", "legacy": prefix != "first"}
    write_json(folder / "tokenizer_config.json", {**config, **llama})
    pre_tokenizer = content.get("pre_tokenizer") or {}
    written = json.loads(to_fast(model, prefix).to_str())
    if not written["model"]["ignore_merges"]:  # else 4.37 converts the SentencePiece model itself
        written.update({name: content[name] for name in ("added_tokens", "post_processor")})
        _make_readable(written)
        write_json(folder / TOKENIZER_FILE, written)
    return (_SPACES_IN_FRONT,) if pre_tokenizer.get("type") == "Metaspace" else ()


def _config(
    tokenizer: PreTrainedTokenizerFast, content: dict[str, Any], count: int
) -> dict[str, Any]:
    """Return the settings of the tokenizer without its class."""
    roles = {role: getattr(tokenizer, role) for role in _ROLES}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= count:
        roles["pad_token"] = tokenizer.unk_token
    added = content["added_tokens"]
    special = {token["content"] for token in added if token["special"]} - set(roles.values())
    return {
        **roles,
        "add_bos_token": bool(start_ids(tokenizer)),
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {name: value for name, value in token.items() if name != "id"}
            for token in added
        },
        "additional_special_tokens": sorted(special),
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _sentencepiece(
    tokenizer: PreTrainedTokenizerFast, content: dict[str, Any], prefix: Prefix
) -> Any | None:  # noqa: ANN401 - see read_model
    """Return the SentencePiece model of a tokenizer: its folder's if that has the same pieces, or else a new one."""
    file = Path(tokenizer.name_or_path) / SENTENCEPIECE_FILE
    if file.is_file():
        model = read_model(check_inside_folder(file))
        vocabulary = content["model"]["vocab"]  # of a unigram model a list with scores, else ids
        pieces = vocabulary if isinstance(vocabulary, dict) else dict(vocabulary)
        if [piece.piece for piece in model.pieces] == sorted(
            pieces, key=tokenizer.get_vocab().__getitem__
        ):
            return model
    return from_fast(content, prefix)


def _make_readable(content: dict[str, Any]) -> list[str]:
    """Change a fast tokenizer to what tokenizers 0.15 reads; return notes on what it then does otherwise."""
    notes = []
    model = content["model"]
    if "merges" in model:
        model["merges"] = [
            pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]
        ]
    if model.pop("ignore_merges", False) and _needs_whole_words(content):
        notes.append("transformers 4.37 splits some words that this tokenizer has as whole tokens")
    for step in _steps_of_type(content, "Metaspace"):
        step["add_prefix_space"] = step["prepend_scheme"] != "never"
        if not step.get("split", True) and step["replacement"] == LOW_LINE:
            notes.append("transformers 4.37 splits texts at spaces, which this tokenizer does not")
    return notes


def _needs_whole_words(content: dict[str, Any]) -> bool:
    """Return whether a token is not the result of its merges."""
    model = Tokenizer.from_str(json.dumps(content)).model
    words = content["model"]["vocab"].keys() - {
        token["content"] for token in content["added_tokens"]
    }
    return any(len(model.tokenize(word)) > 1 for word in words)


def _steps_of_type(step: Any, name: str) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Yield the normalizers, pre-tokenizers and decoders of a type at any depth."""
    if isinstance(step, list):
        for inner in step:
            yield from _steps_of_type(inner, name)
    elif isinstance(step, dict):
        if step.get("type") == name:
            yield step
        for part in ("pre_tokenizer", "decoder", "pretokenizers", "decoders"):
            yield from _steps_of_type(step.get(part), name)
