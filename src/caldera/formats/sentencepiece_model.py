"""Conversion of a SentencePiece model to a fast tokenizer that gives the same ids as SentencePiece itself."""

import json
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from caldera.errors import ModelFormatError
from caldera.extras import require_extra
from caldera.formats.config import error_line
from caldera.templates.tokenization import LOW_LINE

SENTENCEPIECE_FILE = "tokenizer.model"
"""A SentencePiece model: the only tokenizer of LLaVA's original folders, and the one that LLaVA's own code reads."""

Prefix = Literal["each", "first", "none"]
"""Which texts get a space in front: each that a special token precedes, only the first, or none."""

_MARK = "\ufdd0"
"""A noncharacter, which marks the first text between two steps."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Types of pieces in SentencePiece's format."""

_UNIGRAM, _BPE = 1, 2
"""Types of models in SentencePiece's format."""


def read_model(file: Path) -> Any:  # noqa: ANN401 - protobuf's classes have no types
    """Read a SentencePiece model.

    Raises:
        ModelFormatError: It is broken, or no fast tokenizer gives its ids.
        UsageError: The package that reads it is not installed.
    """
    model = _protobuf(file).ModelProto()
    from google.protobuf.message import DecodeError  # a part of what sentencepiece needs

    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise ModelFormatError(
            f"{file} is not a SentencePiece model, or it is incomplete; copy it again"
        ) from None
    if not model.pieces:
        raise ModelFormatError(f"{file} is not a SentencePiece model: it has no pieces")
    _check_loads(model, file)
    reason = _unsupported(model)
    if reason is not None:
        raise ModelFormatError(
            f"{file} {reason}, which no fast tokenizer reproduces; give a folder with a tokenizer.json"
        )
    return model


def _check_loads(model: Any, file: Path) -> None:  # noqa: ANN401 - see read_model
    """Raise ModelFormatError if SentencePiece itself rejects a model, such as one with a piece twice."""
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor().LoadFromSerializedProto(model.SerializeToString())
    except RuntimeError as error:
        raise ModelFormatError(
            f"SentencePiece cannot load {file} ({error_line(error)}); copy it again"
        ) from None


def _protobuf(file: Path) -> Any:  # noqa: ANN401 - a module without types
    """Return the module of SentencePiece's format."""
    require_extra("import", str(file))
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2


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


def space_prefix(content: dict[str, Any]) -> Prefix | None:
    """Return which texts get a space in front by the JSON of a fast tokenizer; None if it changes texts otherwise."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": LOW_LINE}
    prepend = {"type": "Prepend", "prepend": LOW_LINE}
    schemes: dict[str, Prefix] = {"always": "each", "first": "first", "never": "none"}
    only_first = [json.loads(step.__getstate__()) for step in _first_only()]
    changes = _steps(content.get("normalizer"))
    symbols = content["model"].get("ignore_merges")  # those of `_splits`, which change no spaces
    splits = [
        step
        for step in _steps(content.get("pre_tokenizer"))
        if not (symbols and step["type"] == "Split" and step["behavior"] != "Removed")
    ]
    if splits in ([], only_first) and changes == [prepend, replace]:
        return "first" if splits else "each"
    if (changes, splits) == ([replace], []):
        return "none"
    match changes, splits:
        case [], [{"type": "Metaspace", "replacement": sign, "split": False, **rest}]:
            return schemes[rest["prepend_scheme"]] if sign == LOW_LINE else None
    return None


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """List the steps of a normalizer or pre-tokenizer."""
    match step:
        case None:
            return []
        case {"type": "Sequence"}:
            [inner] = (value for name, value in step.items() if name != "type")
            return list(inner)
    return [step]


def from_fast(content: dict[str, Any], prefix: Prefix) -> Any | None:  # noqa: ANN401 - see read_model
    """Return a SentencePiece model with the pieces and merges of a fast tokenizer; None if there is none.

    SentencePiece merges any pair whose result is a piece, by the score of the result, so there is one only if the fast
    tokenizer does the same.

    Args:
        content: The JSON of the tokenizer.
        prefix: Which texts it puts a space in front of.
    """
    inner = content["model"]
    settings = {"type": "BPE", "byte_fallback": True, "fuse_unk": True, "dropout": None}
    same = all(inner.get(name) == value for name, value in settings.items())
    ids: dict[str, int] = inner["vocab"] if same else {}
    if inner.get("ignore_merges") or sorted(ids.values()) != list(range(len(ids))):
        return None
    added = {token["content"] for token in content["added_tokens"]}
    types = {piece: _piece_type(piece, inner["unk_token"], added) for piece in ids}
    scores = _scores(
        [piece for piece in ids if types[piece] == _NORMAL],
        [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in inner["merges"]],
    )
    if scores is None or inner["unk_token"] not in ids:
        return None
    model = _protobuf(Path(SENTENCEPIECE_FILE)).ModelProto()
    for piece in sorted(ids, key=ids.__getitem__):
        model.pieces.add(piece=piece, score=scores.get(piece, 0.0), type=types[piece])
    trainer = {"model_type": _BPE, "vocab_size": len(ids), "byte_fallback": True}
    unknown = {"unk_piece": inner["unk_token"], "unk_id": ids[inner["unk_token"]]}
    for name, value in {**trainer, **unknown}.items():
        setattr(model.trainer_spec, name, value)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix != "none"
    model.normalizer_spec.remove_extra_whitespaces = False
    return model


def _piece_type(piece: str, unknown: str, added: Collection[str]) -> int:
    """Return the type of a token of a fast tokenizer as a piece."""
    if piece == unknown:
        return _UNKNOWN
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return _BYTE
    return _CONTROL if piece in added else _NORMAL


def _scores(pieces: list[str], merges: list[tuple[str, ...]]) -> dict[str, float] | None:
    """Return a score for each piece with which SentencePiece has the same merges; None if there are none.

    Merges with the same result follow one another. Only pieces of one score may take turns, in the order of `_bpe`.
    """
    if set(merges) != set(_pairs(pieces)):
        return None
    last = {left + right: rank for rank, (left, right) in enumerate(merges)}
    scores, start, end = dict.fromkeys(pieces, -float(len(merges))), 0, 0
    for rank, (left, right) in enumerate(merges):
        end = max(end, last[left + right])
        if rank == end:
            group = merges[start : end + 1]
            results = {left + right for left, right in group}
            if len(results) > 1 and group != sorted(group, key=_by_length):
                return None
            scores.update(dict.fromkeys(results, -float(start)))
            start = rank + 1
    return scores


def _unsupported(model: Any) -> str | None:  # noqa: ANN401 - see read_model
    """Return the reason why no fast tokenizer gives a model's ids; None if one does."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    vocabulary = {piece.piece for piece in model.pieces}
    unigram = trainer.model_type == _UNIGRAM
    lone = {letter for piece in _pieces(model, _NORMAL) for letter in piece} - vocabulary
    reasons = {
        "names another unknown piece than it has": _pieces(model, _UNKNOWN) != [trainer.unk_piece],
        "has scores that are not finite": not all(math.isfinite(p.score) for p in model.pieces),
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
    merges = sorted(_pairs(scores), key=_by_length)
    merges.sort(key=lambda pair: -scores[pair[0] + pair[1]])
    return models.BPE(
        {piece.piece: number for number, piece in enumerate(model.pieces)},
        merges,
        unk_token=model.trainer_spec.unk_piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
        ignore_merges=bool(_pieces(model, _USER_DEFINED)),
    )


def _pairs(pieces: Collection[str]) -> list[tuple[str, str]]:
    """List the pairs of pieces that are a piece together."""
    unique = frozenset(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in unique and piece[cut:] in unique
    ]


def _by_length(pair: tuple[str, ...]) -> tuple[int, int]:
    """Return the order of pairs with the same score: the longest left piece first."""
    return -len(pair[0]), -len(pair[1])


def _unigram(model: Any) -> models.Unigram:  # noqa: ANN401 - see read_model
    """Return the unigram model; of two readings of a text with equal scores it may take the other one."""
    return models.Unigram(
        [(piece.piece, piece.score) for piece in model.pieces],
        unk_id=[piece.type for piece in model.pieces].index(_UNKNOWN),
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


def _first_only() -> tuple[pre_tokenizers.PreTokenizer, pre_tokenizers.PreTokenizer]:
    """Return the steps that leave the space in front of a text only if it is the first.

    The first step marks the first text, and the second removes what each text then starts with: the mark, or the space.
    """
    mark = pre_tokenizers.Metaspace(_MARK, prepend_scheme="first", split=False)
    return mark, pre_tokenizers.Split(Regex(rf"\A[{_MARK}{LOW_LINE}]"), "removed")


def _splits(model: Any, prefix: Prefix) -> list[pre_tokenizers.PreTokenizer]:  # noqa: ANN401 - see read_model
    """List the steps that split a text."""
    steps: list[pre_tokenizers.PreTokenizer] = []
    if prefix == "first":
        steps.extend(_first_only())
    if symbols := sorted(_pieces(model, _USER_DEFINED), key=len, reverse=True):
        pattern = "|".join(re.escape(symbol) for symbol in symbols)
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if _spells_bytes(model):
        spelled = Regex("<(?=0x[0-9A-F]{2}>)")
        steps.append(pre_tokenizers.Split(spelled, "merged_with_previous"))
    return steps
