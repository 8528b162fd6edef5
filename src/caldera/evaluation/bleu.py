"""Captions and what people wrote in, corpus BLEU of one to four words out.

Papineni et al., BLEU (ACL 2002, section 2), in the form in which COCO's captions are scored (pycocoevalcap): n-grams
are counted over all images before dividing, each at most as often as one reference says it; a corpus shorter than
its references is punished, where an image counts with the reference nearest in length, the shorter of two as near.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from caldera.evaluation.caption_words import ptb_tokenize

_MAX_N = 4
_SMALL, _TINY = 1e-9, 1e-15
"""Keep divisions defined, as pycocoevalcap does; without an n-gram in common the score is nearly 0, not 0."""

NGram = tuple[str, ...]


def bleu(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[float]:
    """Return BLEU-1 to BLEU-4 of all images together, between 0 and 1.

    Args:
        candidates: A caption for each image, by its id.
        references: What people wrote about each image.
    """
    said, nearest = 0, 0
    matched, possible = [0] * _MAX_N, [0] * _MAX_N
    for name, texts in references.items():
        words = ptb_tokenize(candidates[name])
        others = [ptb_tokenize(text) for text in texts]
        said += len(words)
        nearest += min((len(other) for other in others), key=lambda n: (abs(n - len(words)), n))
        for n in range(1, _MAX_N + 1):
            limits: Counter[NGram] = Counter()
            for other in others:
                limits |= ngrams(other, n)
            matched[n - 1] += (ngrams(words, n) & limits).total()
            possible[n - 1] += max(0, len(words) - n + 1)
    ratio = (said + _TINY) / (nearest + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [brevity * product ** (1 / n) for n, product in _products(matched, possible)]


def ngrams(words: Sequence[str], n: int) -> Counter[NGram]:
    """Count the n-grams of a text of one length."""
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def _products(matched: Sequence[int], possible: Sequence[int]) -> list[tuple[int, float]]:
    """Return, for each n, the product of the precisions of up to n words."""
    products: list[tuple[int, float]] = []
    product = 1.0
    for n, (right, all_of_them) in enumerate(zip(matched, possible, strict=True), start=1):
        product *= (right + _TINY) / (all_of_them + _SMALL)
        products.append((n, product))
    return products
