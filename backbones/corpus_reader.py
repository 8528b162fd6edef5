"""Token rows of the text corpus: ids of words and bags, answers, and references."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from backbones.references import NO_REFERENCE, Reference, ReferenceTable
from backbones.text_corpus import Document
from caldera.scenes.scene import Scene

MAX_WORDS = 7
"""Maximal number of words in a bag: kind, color, number, two for the position and two for the center."""

NO_WORD = -1
"""Padding of a bag up to the maximal number of words."""

WordBag = tuple[int, ...]
"""Token ids of one position: several words of a cell, otherwise one token."""


class EncodedDocument(NamedTuple):
    """A document by position: its bags, whether they are of an answer, and what they refer to."""

    bags: list[WordBag]
    answers: list[bool]
    references: list[Reference]


class DocumentEncoder:
    """Tokenization of documents."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the tokenizer, and the names in it that refer to something."""
        self._tokenizer = tokenizer
        self._names = ReferenceTable.of(tokenizer)

    def __call__(self, document: Document) -> EncodedDocument:
        """Encode a document; names refer to the scenes that are described as bags."""
        start: WordBag = (self._tokenizer.bos_token_id,)
        encoded = EncodedDocument([start], [False], [NO_REFERENCE])
        scenes = [segment.scene for segment in document if segment.scene]
        seen: list[Scene] = []
        for segment in document:
            texts = list(segment.cells) or segment.text
            ids = self._tokenizer(texts, add_special_tokens=False).input_ids
            if segment.cells:
                encoded.bags.extend(tuple(words[:MAX_WORDS]) for words in ids)
                seen += [segment.scene] if segment.scene else []
                encoded.references.extend(
                    self._names.bag_references(ids, seen) if seen else [NO_REFERENCE] * len(ids)
                )
            else:
                encoded.bags.extend((token,) for token in ids)
                encoded.references.extend(self._names.references(ids, scenes))
            encoded.answers.extend([segment.answer] * len(ids))
        return encoded


class TokenRows(NamedTuple):
    """Rows of tokens of one length."""

    ids: Tensor
    """Words of bags, (rows, tokens, words)."""

    answers: Tensor
    """Whether a token is of an answer, (rows, tokens)."""

    references: Tensor
    """What each token refers to, (rows, tokens, values)."""


class PackedReader:
    """Rows of tokens of one length, cut from concatenated documents."""

    def __init__(self, stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast) -> None:
        self._stream = stream
        self._encode = DocumentEncoder(tokenizer)

    def rows(self, count: int, length: int) -> TokenRows:
        """Return rows of `length` + 1 tokens."""
        rows = [self._row(length + 1) for _ in range(count)]
        return TokenRows(
            torch.stack([as_tensor(row.bags) for row in rows]),
            torch.tensor([row.answers for row in rows]),
            torch.tensor([row.references for row in rows]),
        )

    def _row(self, length: int) -> EncodedDocument:
        row = EncodedDocument([], [], [])
        while len(row.bags) < length:
            document = self._encode(next(self._stream))
            row.bags.extend(document.bags)
            row.answers.extend(document.answers)
            row.references.extend(document.references)
        return EncodedDocument(row.bags[:length], row.answers[:length], row.references[:length])


def as_tensor(bags: Sequence[WordBag]) -> Tensor:
    """Return padded bags, (tokens, words)."""
    return torch.tensor([[*bag, *[NO_WORD] * (MAX_WORDS - len(bag))] for bag in bags])
