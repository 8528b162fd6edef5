"""BLEU, ROUGE-L, CIDEr-D.

COCO's evaluation (pycocoevalcap) runs that tokenizer, which needs Java, and then drops punctuation. The rules here are
an approximation: lower case; hyphenated words, abbreviations and numbers whole; "n't", "'s" and their like as words of
their own; "cannot" as two; punctuation dropped. docs/evaluation.md says how close they come.

Papineni et al., BLEU (ACL 2002, section 2), in the form in which COCO's captions are scored (pycocoevalcap): n-grams
are counted over all images before dividing, each at most as often as one reference says it; a corpus shorter than
its references is punished, where an image counts with the reference nearest in length, the shorter of two as near.

After Vedantam et al., CIDEr (arXiv 1411.5726, section 3): n-grams of one to four words are weighed by how few images
they are said of, cosine similarities with each reference are averaged, and the D variant clips repetition and punishes
a difference in length. The usual factor of ten makes scores lie between 0 and 10.

Lin, ROUGE (ACL workshop 2004, section 3.1), in the form in which COCO's captions are scored (pycocoevalcap): the best
precision and the best recall over the references, which may be two of them, with recall weighed by beta 1.2.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
"""Words that are written as one and counted as two."""

_CLITIC = r"n't(?!\w)|'(?:s|re|ve|ll|d|m)(?!\w)"
_FUSED = re.compile(rf"(?<=\w)({_CLITIC})|\b({'|'.join(_TWO_WORDS)})\b")
_WORD = re.compile(
    rf"{_CLITIC}"
    r"|\d+(?:[.,:]\d+)+"  # 1,000 and 3:30
    r"|(?:[a-z]\.){2,}"  # u.s.
    r"|(?:[od]')?\w+(?:[-&/]\w+)*"  # o'clock, t-shirt, red/white
    r"|[$%#&+]"
)


def ptb_tokenize(caption: str) -> list[str]:
    """Split a caption into words in lower case, without punctuation."""
    apart = _FUSED.sub(lambda found: f" {_TWO_WORDS.get(found[0], found[0])}", caption.lower())
    return _WORD.findall(apart)


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


_SIGMA = 6.0
"""Width of the punishment for a different length, in words."""

_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class _Vector:
    """A caption's weighed n-grams."""

    weights: dict[NGram, float]
    norms: tuple[float, ...]
    length: int


def _grams(text: str) -> Counter[NGram]:
    """Count the n-grams of a caption."""
    words = ptb_tokenize(text)
    return Counter(
        tuple(words[at : at + n]) for n in range(1, _MAX_N + 1) for at in range(len(words) - n + 1)
    )


def cider_d(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return the mean CIDEr-D over all images.

    Args:
        candidates: A caption for each image, by its id.
        references: What people wrote about each image; rarity of n-grams is counted over these.
    """
    scores = cider_d_per_image(candidates, references)
    return sum(scores.values()) / len(scores)


def cider_d_per_image(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return CIDEr-D by image id; the arguments are those of `cider_d`."""
    spread: Counter[NGram] = Counter()
    for texts in references.values():
        spread.update({gram for text in texts for gram in _grams(text)})
    return {
        name: _against(
            _vector(candidates[name], spread, len(references)),
            [_vector(text, spread, len(references)) for text in texts],
        )
        for name, texts in references.items()
    }


def _vector(text: str, spread: Counter[NGram], images: int) -> _Vector:
    """Weigh the n-grams of a caption by how few of the `images` they are said of."""
    weights = {
        gram: count * (math.log(images) - math.log(max(1, spread[gram])))
        for gram, count in _grams(text).items()
    }
    norms = tuple(
        math.sqrt(sum(weight**2 for gram, weight in weights.items() if len(gram) == n))
        for n in range(1, _MAX_N + 1)
    )
    return _Vector(weights, norms, len(ptb_tokenize(text)))


def _against(candidate: _Vector, references: Sequence[_Vector]) -> float:
    """Average the similarity of a candidate over references and lengths of n-grams."""
    total = 0.0
    for reference in references:
        closeness = math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
        for n in range(1, _MAX_N + 1):
            product = sum(
                min(weight, reference.weights.get(gram, 0.0)) * reference.weights.get(gram, 0.0)
                for gram, weight in candidate.weights.items()
                if len(gram) == n
            )
            norm = candidate.norms[n - 1] * reference.norms[n - 1]
            total += closeness * product / norm if norm else 0.0
    return _SCALE * total / (_MAX_N * len(references))


_BETA = 1.2


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Return ROUGE-L of one caption against what people wrote of its image, between 0 and 1."""
    words = ptb_tokenize(candidate)
    precision = recall = 0.0
    for text in references:
        other = ptb_tokenize(text)
        if words and other:
            common = _longest_common(words, other)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(other))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def mean_rouge_l(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return the mean ROUGE-L over all images.

    Args:
        candidates: A caption for each image, by its id.
        references: What people wrote about each image.
    """
    scores = [rouge_l(candidates[name], texts) for name, texts in references.items()]
    return sum(scores) / len(scores)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many words the longest subsequence has that both texts share."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for at, again in enumerate(other, start=1):
            row.append(before[at - 1] + 1 if word == again else max(before[at], row[at - 1]))
    return row[-1]
