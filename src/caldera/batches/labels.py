"""Spans in, token ids and labels out, born together.

The law: the labels that are not IGNORED, decoded, spell exactly the assistant's turns and their end marks. The text
between two special tokens is tokenised once, and each token looks up, by the characters it stands for, whether it is
learned; nothing is tokenised a second time to be counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerFast

from caldera.batches.templates import Mark, Slot, Span, Text
from caldera.errors import ModelFolderError

IGNORED = -100
"""Label of a token on which no loss is taken."""

SLOT = -200
"""Stands for a picture until it is known how many tokens the picture has; LLaVA's own number for it."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation as numbers."""

    ids: tuple[int, ...]
    """Token ids, with SLOT where a picture stands."""

    labels: tuple[int, ...]
    """The id where the token is learned, else IGNORED."""

    picture_paths: tuple[str, ...]
    """Path for each SLOT, in order."""

    @property
    def num_learned(self) -> int:
        """Tokens that the loss is taken on."""
        return sum(label != IGNORED for label in self.labels)

    def with_image_tokens(self, counts: Sequence[int], image_token_id: int) -> "Encoded":
        """Return it with each SLOT replaced by as many image tokens as its picture has.

        Raises:
            ValueError: There is not one count for each slot.
        """
        widths = iter(counts)
        if len(counts) != len(self.picture_paths):
            raise ValueError(f"{len(self.picture_paths)} slots but {len(counts)} counts of tokens")
        ids: list[int] = []
        labels: list[int] = []
        for token, label in zip(self.ids, self.labels, strict=True):
            repeat = next(widths) if token == SLOT else 1
            ids += [image_token_id if token == SLOT else token] * repeat
            labels += [label] * repeat
        return Encoded(tuple(ids), tuple(labels), self.picture_paths)


def start_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids that the tokenizer itself puts before a text: its start mark, or nothing."""
    given = list(tokenizer("").input_ids)
    return [token for token in given if token == tokenizer.bos_token_id][:1]


def encode(spans: Iterable[Span], tokenizer: PreTrainedTokenizerFast) -> Encoded:
    """Encode rendered spans.

    Args:
        spans: What a template rendered.
        tokenizer: A fast tokenizer; its start mark is used if it uses one itself.

    Returns:
        Ids and labels of equal length, one SLOT for each picture.

    Raises:
        ModelFolderError: The tokenizer has no end mark, but the template needs one.
    """
    ids: list[int] = []
    labels: list[int] = []
    paths: list[str] = []
    for is_text, run in groupby(spans, key=lambda span: isinstance(span, Text)):
        if is_text:
            tokens, learned = _encode_text(
                [span for span in run if isinstance(span, Text)], tokenizer
            )
            ids += tokens
            labels += [
                token if known else IGNORED for token, known in zip(tokens, learned, strict=True)
            ]
            continue
        for span in run:
            tokens = [SLOT] if isinstance(span, Slot) else _mark_ids(span, tokenizer)
            ids += tokens
            labels += tokens if isinstance(span, Mark) and span.learned else [IGNORED] * len(tokens)
            paths += [span.picture.path] if isinstance(span, Slot) else []
    return Encoded(tuple(ids), tuple(labels), tuple(paths))


def _mark_ids(mark: Span, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of a mark.

    Raises:
        ModelFolderError: The tokenizer has no end mark.
    """
    assert isinstance(mark, Mark)
    if mark.which == "start":
        return start_ids(tokenizer)
    if tokenizer.eos_token_id is None:
        raise ModelFolderError("the tokenizer names no eos_token, so answers cannot end; set one")
    return [tokenizer.eos_token_id]


def _encode_text(
    spans: Sequence[Text], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[bool]]:
    """Tokenise neighbouring texts in one pass; tell for each token whether it is learned.

    A token that would hold characters of both a learned and an unlearned text would break the law, so such texts are
    tokenised apart; this also keeps a prompt's tokens the same whether or not its answer follows.
    """
    text = "".join(span.text for span in spans)
    learned_at = [span.learned for span in spans for _ in span.text]
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    learned: list[bool] = []
    for begin, end in encoding.offset_mapping:
        kinds = set(learned_at[begin:end]) or {learned_at[begin - 1] if begin else False}
        if len(kinds) > 1:
            return _encode_apart(spans, tokenizer)
        learned.append(kinds.pop())
    return list(encoding.input_ids), learned


def _encode_apart(
    spans: Sequence[Text], tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[bool]]:
    """Tokenise stretches of learned and of unlearned text each by itself."""
    ids: list[int] = []
    learned: list[bool] = []
    for known, run in groupby(spans, key=lambda span: span.learned):
        text = "".join(span.text for span in run)
        tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids += tokens
        learned += [known] * len(tokens)
    return ids, learned
