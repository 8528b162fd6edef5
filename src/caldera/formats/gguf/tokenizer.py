"""A tokenizer in, the keys by which llama.cpp tokenizes alike out; what it cannot split alike is refused.

llama.cpp knows two ways: byte-level BPE, whose texts are first cut by a pattern that it knows by name (`pre`), and
SentencePiece, which joins the pair whose result has the highest score. `caldera parity` compares the ids.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.gguf.writer import Value
from caldera.templates.tokenization import start_ids

_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6
"""llama.cpp's kinds of tokens."""

_GPT2 = "<ByteLevel>"
"""Stands in a cut for the pattern that the tokenizers library's ByteLevel has built in."""

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
"""`tokenizer.ggml.pre` by the patterns that a tokenizer cuts a text by, one after the other."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's mark for a space."""

_UNMADE = -1e6
"""Score of tokens that no merge makes: characters and special tokens."""


def tokenizer_metadata(
    tokenizer: PreTrainedTokenizerFast, rows: int, ends: Sequence[int] = ()
) -> dict[str, Value]:
    """Return the keys of `tokenizer.ggml`.

    Args:
        tokenizer: A fast tokenizer.
        rows: Of the embedding table; those behind the tokens are filled up with unused ones.
        ends: Tokens that end an answer; what is not the tokenizer's own end mark becomes llama.cpp's end of turn.

    Raises:
        ModelFolderError: llama.cpp has no way of tokenizing like it.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model.get("type") != "BPE":
        raise ModelFormatError(
            f"a tokenizer of type {model.get('type')!r} cannot be exported to GGUF; BPE can"
        )
    words = _words(tokenizer, rows)
    way = _sentencepiece if model.get("byte_fallback") else _byte_level
    return {
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": _types(content, words, len(tokenizer)),
        **way(content, words),
        **_special(tokenizer, ends),
    }


def _words(tokenizer: PreTrainedTokenizerFast, rows: int) -> list[str]:
    """List the tokens by id, with a name for every row that has none."""
    words = [f"[PAD{number}]" for number in range(rows)]
    for word, number in tokenizer.get_vocab().items():
        if number >= rows:
            raise ModelFormatError(
                f"the tokenizer's token {word!r} has id {number}, but there are only {rows} embeddings"
            )
        words[number] = word
    return words


def _types(content: dict[str, Any], words: Sequence[str], known: int) -> list[int]:
    """List what kind of token each is."""
    vocabulary = content["model"]["vocab"]
    added = {token["id"]: bool(token["special"]) for token in content["added_tokens"]}
    unknown = content["model"].get("unk_token")
    fallback = bool(content["model"].get("byte_fallback"))
    types = []
    for number, word in enumerate(words):
        if word == unknown:
            types.append(_UNKNOWN)
        elif number in added:
            types.append(_CONTROL if added[number] else _NORMAL)
        elif fallback and len(word) == len("<0x00>") and word.startswith("<0x"):
            types.append(_BYTE)
        else:
            types.append(_NORMAL if word in vocabulary else _UNUSED)
    return types


def _merges(content: dict[str, Any]) -> list[tuple[str, str]]:
    """List the merges as pairs; files hold them as pairs or as two words with a space between."""
    return [
        (left, right)
        for merge in content["model"]["merges"]
        for left, right in [merge.split(" ") if isinstance(merge, str) else merge]
    ]


def _byte_level(content: dict[str, Any], words: Sequence[str]) -> dict[str, Value]:
    """Return the keys of byte-level BPE.

    Raises:
        ModelFolderError: llama.cpp has no name for how the tokenizer cuts a text, or does not change it alike before.
    """
    cut = _pre_tokenizer(content.get("pre_tokenizer"))
    normalizer = (content.get("normalizer") or {}).get("type")
    if cut not in PATTERNS or normalizer not in (None, "NFC"):
        raise ModelFormatError(
            f"llama.cpp has no name for how this tokenizer prepares a text (normalizer {normalizer!r}, patterns "
            f"{list(cut)}), so it would give other tokens; known: {', '.join(PATTERNS.values())}"
        )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PATTERNS[cut],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(content)],
    }


def _pre_tokenizer(step: dict[str, Any] | None) -> tuple[str, ...]:
    """Write down how a tokenizer cuts a text, as keys of PATTERNS; what is not known stands there by its type."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            return tuple(pattern for one in steps for pattern in _pre_tokenizer(one))
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(used)}:
            return (_GPT2,) if used else ()
        case {"type": "Digits", "individual_digits": True}:
            return ("<Digits>",)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}:
            return (str(pattern),)
        case None:
            return ("nothing",)
    return (str(step.get("type")),)


def _sentencepiece(content: dict[str, Any], words: Sequence[str]) -> dict[str, Value]:
    """Return the keys of SentencePiece's BPE, as LLaMA's tokenizers hold it: a token's score is its first merge's rank.

    Raises:
        ModelFolderError: It changes a text otherwise than by writing spaces as SentencePiece does.
    """
    prefix = _space_prefix(content)
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_merges(content)):
        rank.setdefault(left + right, number)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [
            -float(rank[word]) if word in rank else _UNMADE for word in words
        ],
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _space_prefix(content: dict[str, Any]) -> bool:
    """Tell whether a text gets a space before it.

    Raises:
        ModelFolderError: The tokenizer prepares texts in a way that llama.cpp has not.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    match content.get("normalizer"), content.get("pre_tokenizer"):
        case {"type": "Sequence", "normalizers": [first, second]}, None:
            if (first, second) == (prepend, replace):
                return True
        case found, None if found == replace:
            return False
        case None, {
            "type": "Metaspace",
            "replacement": mark,
            "prepend_scheme": scheme,
            "split": False,
        }:
            if mark == _SPACE and scheme in ("always", "first", "never"):
                return bool(scheme != "never")
    raise ModelFormatError(
        "llama.cpp has no way to prepare a text as this tokenizer does (normalizer "
        f"{content.get('normalizer')}, pre_tokenizer {content.get('pre_tokenizer')})"
    )


def _special(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int]) -> dict[str, Value]:
    """Return the ids of the special tokens, and whether a text starts with one."""
    numbers = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        "eot": next((end for end in ends if end != tokenizer.eos_token_id), None),
    }
    given: dict[str, Value] = {
        f"tokenizer.ggml.{name}_token_id": number
        for name, number in numbers.items()
        if number is not None
    }
    return given | {
        "tokenizer.ggml.add_bos_token": bool(start_ids(tokenizer)),
        "tokenizer.ggml.add_eos_token": False,
    }
