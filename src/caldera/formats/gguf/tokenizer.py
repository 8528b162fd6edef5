"""GGUF keys of a tokenizer; tokenizers that llama.cpp would not reproduce are rejected.

llama.cpp has two algorithms: byte-level BPE, which first splits the text by a named pattern (`pre`), and SentencePiece,
which merges the pair whose result has the highest score. `caldera parity` compares the token ids.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.gguf.writer import Value
from caldera.formats.sentencepiece_model import space_prefix
from caldera.templates.tokenization import start_ids

_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
"""Token types of llama.cpp."""

_GPT2 = "<ByteLevel>"
"""Placeholder for the pattern that is built into ByteLevel of the tokenizers library."""

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

PATTERNS: dict[tuple[str, ...], str] = {
    (_GPT2,): "gpt-2",
    ("<Digits>", _GPT2): "smollm",
    (_QWEN2,): "qwen2",
    (_LLAMA3,): "llama-bpe",
}
"""`tokenizer.ggml.pre` by the patterns that split a text, in order."""

_NO_MERGE_SCORE = -1e6
"""Score of tokens that no merge produces: characters and special tokens."""


def tokenizer_metadata(
    tokenizer: PreTrainedTokenizerFast, rows: int, ends: Sequence[int] = ()
) -> dict[str, Value]:
    """Return the keys of `tokenizer.ggml`.

    Args:
        tokenizer: A fast tokenizer.
        rows: Rows of the embedding table; those after the last token become unused tokens.
        ends: Tokens that end an answer; the first that is not the tokenizer's own becomes llama.cpp's end of turn.

    Raises:
        ModelFormatError: llama.cpp cannot reproduce the tokenizer.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelFormatError(
            f"a tokenizer of type {model.get('type')!r} cannot be exported to GGUF; BPE can"
        )
    tokens = _tokens(tokenizer, rows)
    algorithm = _sentencepiece if model.get("byte_fallback") else _byte_level
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": _token_types(content, tokens),
        **algorithm(content, tokens),
        **_special(tokenizer, ends),
    }


def _tokens(tokenizer: PreTrainedTokenizerFast, rows: int) -> list[str]:
    """List the tokens by id, with a placeholder for every other row."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    for token, number in tokenizer.get_vocab().items():
        if number >= rows:
            raise ModelFormatError(
                f"the tokenizer's token {token!r} has id {number}, but there are only {rows} embeddings"
            )
        tokens[number] = token
    return tokens


def _token_types(content: dict[str, Any], tokens: Sequence[str]) -> list[int]:
    """List the type of each token."""
    vocabulary = content["model"]["vocab"]
    added = {token["id"]: bool(token["special"]) for token in content["added_tokens"]}
    unknown = content["model"].get("unk_token")
    fallback = bool(content["model"].get("byte_fallback"))
    types = []
    for number, token in enumerate(tokens):
        if token == unknown:
            types.append(_UNKNOWN)
        elif number in added:
            types.append(_CONTROL if added[number] else _NORMAL)
        elif fallback and len(token) == len("<0x00>") and token.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL if token in vocabulary else _UNUSED)
    return types


def _merges(content: dict[str, Any]) -> list[tuple[str, str]]:
    """List the merges as pairs; files hold them as pairs or as two tokens separated by a space."""
    return [
        (left, right)
        for merge in content["model"]["merges"]
        for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
    ]


def _byte_level(content: dict[str, Any], tokens: Sequence[str]) -> dict[str, Value]:
    """Return the keys of byte-level BPE, or raise ModelFormatError if llama.cpp splits texts otherwise."""
    patterns = _split_patterns(content.get("pre_tokenizer"))
    normalizer = (content.get("normalizer") or {}).get("type")
    if patterns not in PATTERNS or normalizer not in (None, "NFC"):
        raise ModelFormatError(
            f"llama.cpp has no name for how this tokenizer prepares a text (normalizer {normalizer!r}, patterns "
            f"{list(patterns)}), so it would give other tokens; known: {', '.join(PATTERNS.values())}"
        )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PATTERNS[patterns],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(content)],
    }


def _split_patterns(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the patterns that split a text, as keys of PATTERNS; an unknown step is given by its type."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(pattern for step in steps for pattern in _split_patterns(step))
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(use_regex)}:
            return (_GPT2,) if use_regex else ()
        case {"type": "Digits", "individual_digits": True}:
            return ("<Digits>",)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}:
            return (str(pattern),)
        case None:
            return ("nothing",)
    return (str(pre_tokenizer.get("type")),)


def _sentencepiece(content: dict[str, Any], tokens: Sequence[str]) -> dict[str, Value]:
    """Return the keys of SentencePiece's BPE; a token's score is the negative rank of its first merge."""
    prefix = _adds_space_prefix(content)
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_merges(content)):
        rank.setdefault(left + right, number)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [
            -float(rank[token]) if token in rank else _NO_MERGE_SCORE for token in tokens
        ],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _adds_space_prefix(content: dict[str, Any]) -> bool:
    """Return whether a text gets a space before it, or raise ModelFormatError if it is changed in another way."""
    prefix = space_prefix(content)
    if prefix is None or content["model"].get("ignore_merges"):
        raise ModelFormatError(
            "llama.cpp has no way to prepare a text as this tokenizer does (normalizer "
            f"{content.get('normalizer')}, pre_tokenizer {content.get('pre_tokenizer')})"
        )
    return prefix != "none"


def _special(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int]) -> dict[str, Value]:
    """Return the ids of the special tokens, and whether a text starts with one."""
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        "eot": next((end for end in ends if end != tokenizer.eos_token_id), None),
    }
    keys: dict[str, Value] = {
        f"tokenizer.ggml.{name}_token_id": number
        for name, number in ids.items()
        if number is not None
    }
    return keys | {
        "tokenizer.ggml.add_bos_token": bool(start_ids(tokenizer)),
        "tokenizer.ggml.add_eos_token": False,
    }
