"""Converted SentencePiece models give SentencePiece's own ids, and models for which none could are rejected."""

import io
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers.models import Unigram

from caldera.errors import ModelFormatError
from caldera.formats.sentencepiece_model import Prefix, read_model, to_fast
from caldera.templates.tokenization import LOW_LINE
from tests.hard_texts import hard_texts
from tests.real_tokenizers import TEXT, data_file

LINES = [*TEXT, "a  b\n    c\td", "def f(x):  return x  # hello", "é ğ 你好 1234 abab ababab"] * 5
SYMBOLS = ["<|end|>", "\n\n", 3 * LOW_LINE, "你好", "\t"]
REAL = ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
"""A model without user-defined symbols, and one with 20 of them."""


def train(folder: Path, **settings: object) -> Path:
    """Train a small model; by default LLaMA's kind."""
    model = io.BytesIO()
    defaults: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **{**defaults, **settings},
    )
    file = folder / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file


def assert_equal_ids(file: Path, count: int, prefix: Prefix = "each") -> None:
    """Compare the ids of `count` texts without special tokens, and their decoding."""
    model, slow = read_model(file), SentencePieceProcessor(str(file))
    fast = to_fast(model, prefix)
    special = [slow.id_to_piece(key) for key in range(len(slow)) if slow.is_control(key)]
    texts = [
        text
        for text in hard_texts(count, special=False)
        if not any(token in text for token in ("<unk>", *special))
    ]
    assert len(texts) > count * 0.7
    for text in texts:
        ids, expected = fast.encode(text, add_special_tokens=False).ids, slow.encode(text)
        if isinstance(fast.model, Unigram) and ids != expected:
            ids.sort(), expected.sort()  # the same pieces in another order have the same score
        assert ids == expected, text
    readable = [ids for ids in map(slow.encode, texts[:50]) if slow.unk_id() not in ids]
    assert readable
    if not model.normalizer_spec.remove_extra_whitespaces:  # then all spaces at the start go
        assert [fast.decode(ids) for ids in readable] == [slow.decode(ids) for ids in readable]


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "count", [2_000, pytest.param(20_000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_real_models_give_sentencepiece_ids(name: str, count: int) -> None:
    """Code, runs of spaces, tabs, scripts, emoji and control characters have SentencePiece's ids."""
    assert_equal_ids(data_file(name), count)


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({}, "each"),
        ({"add_dummy_prefix": False}, "none"),
        ({"user_defined_symbols": SYMBOLS}, "each"),
        ({"user_defined_symbols": SYMBOLS, "add_dummy_prefix": False}, "none"),
        ({"byte_fallback": False}, "each"),
        ({"remove_extra_whitespaces": True}, "each"),
        ({"model_type": "unigram"}, "each"),
        ({"model_type": "unigram", "byte_fallback": False}, "each"),
        ({"model_type": "unigram", "remove_extra_whitespaces": True}, "each"),
    ],
)
def test_trained_models_give_sentencepiece_ids(
    tmp_path: Path, settings: dict[str, object], prefix: Prefix
) -> None:
    """Each setting of SentencePiece's trainer that a fast tokenizer can follow is followed."""
    assert_equal_ids(train(tmp_path, **settings), 1_500, prefix)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, r"normalizes letters \(NFKC\)"),
        ({"treat_whitespace_as_suffix": True}, "puts spaces after words"),
        ({"model_type": "char"}, "neither a BPE nor a unigram"),
        (
            {"model_type": "unigram", "user_defined_symbols": SYMBOLS},
            "unigram model with user-defined symbols",
        ),
        ({"user_defined_symbols": ["<0"], "model_type": "unigram"}, "user-defined symbols"),
    ],
)
def test_a_model_that_no_fast_tokenizer_follows_is_rejected(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    """The message has the reason and what to do."""
    with pytest.raises(ModelFormatError, match=f"{reason}.*give a folder with a tokenizer.json"):
        read_model(train(tmp_path, **settings))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("unused", "has unused pieces"),
        ("letter", "letters that are no pieces"),
        ("twice", "SentencePiece cannot load .* already defined"),
        ("few", "SentencePiece cannot load .* not 256 byte pieces"),
        ("unknown", "another unknown piece"),
        ("score", "scores that are not finite"),
    ],
)
def test_changed_pieces_are_rejected(tmp_path: Path, change: str, reason: str) -> None:
    """A model whose pieces contradict each other, or that no fast tokenizer splits alike, is not read."""
    file = train(tmp_path)
    model = read_model(file)
    match change:
        case "unused":
            model.pieces[-1].type = 5
        case "letter":
            model.pieces.add(piece="a\u0e00", score=-3.0)
        case "twice":
            model.pieces.add(piece=model.pieces[-1].piece, score=-3.0)
        case "few":
            del model.pieces[3:]
            model.trainer_spec.byte_fallback = True
        case "unknown":
            model.trainer_spec.unk_piece = "<none>"
        case "score":
            model.pieces[-1].score = float("nan")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match=reason):
        read_model(file)


@pytest.mark.parametrize("content", [b"", b"hello" * 9, b"PGh0bWw+ 0\nPA== 1\n"])
def test_another_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    """An empty file, a text, and a tiktoken vocabulary are no SentencePiece models."""
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelFormatError, match="is not a SentencePiece model"):
        read_model(tmp_path / "tokenizer.model")
