"""Captions and what people wrote in, CIDEr-D out: how well a caption says what people say of an image.

After Vedantam et al., CIDEr (arXiv 1411.5726, section 3): n-grams of one to four words are weighed by how few images
they are said of, cosine similarities with each reference are averaged, and the D variant clips repetition and punishes
a difference in length. The usual factor of ten makes scores lie between 0 and 10.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caldera.evaluation.caption_words import ptb_tokenize

_MAX_N = 4
_SIGMA = 6.0
"""Width of the punishment for a different length, in words."""

_SCALE = 10.0

NGram = tuple[str, ...]


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
