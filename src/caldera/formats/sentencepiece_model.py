"""Conversion of a SentencePiece model to a fast tokenizer that gives the same ids as SentencePiece itself."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from caldera.errors import ModelFormatError, UsageError

LOW_LINE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's character for a space."""

Prefix = Literal["each", "first", "none"]
"""Which texts get a space in front: each that a special token precedes, only the first, or none."""

_MARK = "\ufdd0"
"""A noncharacter, which marks the first text between two steps."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of pieces in SentencePiece's format."""

_UNIGRAM, _BPE = 1, 2
"""Types of models in SentencePiece's format."""


def read_model(file: Path) -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Read a SentencePiece model.

    Raises:
        ModelFormatError: It is broken, or no fast tokenizer gives its ids.
        UsageError: The package that reads it is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise UsageError(
            f"{file} needs the package sentencepiece; pip install 'caldera[import]'"
        ) from None
    from google.protobuf.message import DecodeError

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise ModelFormatError(
            f"{file} is not a SentencePiece model, or it is incomplete"
        ) from None
    if not model.pieces:
        raise ModelFormatError(f"{file} is not a SentencePiece model: it has no pieces")
    reason = _unsupported(model)
    if reason is not None:
        raise ModelFormatError(
            f"{file} {reason}, which no fast tokenizer reproduces; give a folder with a tokenizer.json"
        )
    return model


def to_fast(model: Any, prefix: Prefix) -> Tokenizer:  # noqa: ANN401 - see read_model
    """Return a fast tokenizer with the ids of a SentencePiece model; its control tokens are special tokens.

    Args:
        model: The model from `read_model`.
        prefix: Which texts get a space in front.
    """
    fast = Tokenizer(_bpe(model) if model.trainer_spec.model_type == _BPE else _unigram(model))
    fast.normalizer = normalizers.Sequence(_normalizers(model, prefix))
    if steps := _splits(model, prefix):
        fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    spaces = [decoders.Replace(LOW_LINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if prefix == "none" else [decoders.Strip(" ", left=1)]
    fast.decoder = decoders.Sequence([*spaces, *strip])
    special = [model.trainer_spec.unk_piece, *_pieces(model, _CONTROL)]
    fast.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return fast


def _unsupported(model: Any) -> str | None:  # noqa: ANN401 - see read_model
    """Return the reason why no fast tokenizer gives a model's ids; None if one does."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    vocabulary = {piece.piece for piece in model.pieces}
    unigram = trainer.model_type == _UNIGRAM
    lone = {letter for piece in _pieces(model, _NORMAL) for letter in piece} - vocabulary
    reasons = {
        "is neither a BPE nor a unigram model": trainer.model_type not in (_UNIGRAM, _BPE),
        "has unused pieces": bool(_pieces(model, _UNUSED)),
        "puts spaces after words": trainer.treat_whitespace_as_suffix,
        "keeps spaces as they are": not normalizer.escape_whitespaces,
        "normalizes letters (NFKC)": bool(normalizer.precompiled_charsmap),
        "is a unigram model with user-defined symbols": unigram
        and bool(_pieces(model, _USER_DEFINED)),
        "has pieces of letters that are no pieces": not unigram and bool(lone),
        "has pieces that hold '<0', so that the text '<0x0A>' becomes a byte": _spells_bytes(model)
        and any("<0" in piece for piece in _pieces(model, _NORMAL)),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _pieces(model: Any, kind: int) -> list[str]:  # noqa: ANN401 - see read_model
    """List the pieces of a type, by id."""
    return [piece.piece for piece in model.pieces if piece.type == kind]


def _spells_bytes(model: Any) -> bool:  # noqa: ANN401 - see read_model
    """Return whether the fast model would take the text of a byte piece for the piece."""
    whole_words = model.trainer_spec.model_type == _UNIGRAM or _pieces(model, _USER_DEFINED)
    return bool(model.trainer_spec.byte_fallback and whole_words)


def _bpe(model: Any) -> models.BPE:  # noqa: ANN401 - see read_model
    """Return the BPE; a pair of pieces that is a piece itself is merged at the rank of its score.

    Of pieces with the same score SentencePiece merges the leftmost. In a run of spaces, whose pieces share one, that
    makes the left piece grow, so the longest left piece goes first.
    """
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda pair: (-scores[pair[0] + pair[1]], -len(pair[0]), -len(pair[1])))
    return models.BPE(
        {piece.piece: number for number, piece in enumerate(model.pieces)},
        merges,
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=bool(_pieces(model, _USER_DEFINED)),
    )


def _unigram(model: Any) -> models.Unigram:  # noqa: ANN401 - see read_model
    """Return the unigram model; of two readings of a text with equal scores it may take the other one."""
    return models.Unigram(
        [(piece.piece, piece.score) for piece in model.pieces],
        unk_id=model.trainer_spec.unk_id,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _normalizers(model: Any, prefix: Prefix) -> list[normalizers.Normalizer]:  # noqa: ANN401 - see read_model
    """List the steps that change a text."""
    spec = model.normalizer_spec
    steps: list[normalizers.Normalizer] = []
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {LOW_LINE}]+\z| +(?= )"), ""))
    if prefix != "none":
        steps.append(normalizers.Prepend(LOW_LINE))
    return [*steps, normalizers.Replace(" ", LOW_LINE)]


def _splits(model: Any, prefix: Prefix) -> Sequence[pre_tokenizers.PreTokenizer]:  # noqa: ANN401 - see read_model
    """List the steps that split a text.

    The normalizer puts a space before every text. Where only the first has one, a step that changes only the first
    text marks it, and the next step removes what every text then starts with: the mark, or the space.
    """
    steps: list[pre_tokenizers.PreTokenizer] = []
    if prefix == "first":
        steps.append(pre_tokenizers.Metaspace(_MARK, prepend_scheme="first", split=False))
        start = Regex(rf"\A[{_MARK}{LOW_LINE}]")
        steps.append(pre_tokenizers.Split(start, "removed"))
    if symbols := sorted(_pieces(model, _USER_DEFINED), key=len, reverse=True):
        pattern = "|".join(re.escape(symbol) for symbol in symbols)
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if _spells_bytes(model):
        spelled = Regex("<(?=0x[0-9A-F]{2}>)")
        steps.append(pre_tokenizers.Split(spelled, "merged_with_previous"))
    return steps
