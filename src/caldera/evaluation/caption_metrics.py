"""Caption metrics in the form of COCO's evaluation (pycocoevalcap): BLEU, ROUGE-L and CIDEr-D.

Tokens: COCO's evaluation runs the PTB tokenizer, which needs Java, and then drops punctuation. The rules here are an
approximation: lower case; hyphenated words, abbreviations and numbers are one token; "n't", "'s" and the like are
tokens; "cannot" is two; punctuation is dropped. docs/evaluation.md documents the remaining difference.

BLEU (Papineni et al., ACL 2002, section 2): n-grams are counted over all images before dividing, each at most as often
as in one reference; a corpus shorter than its references is penalized, with the reference nearest in length of each
image, the shorter of two equally near.

CIDEr-D (Vedantam et al., arXiv 1411.5726, section 3): n-grams of one to four words are weighted by inverse document
frequency over images, cosine similarities with each reference are averaged, and the D variant clips repetition and
penalizes a difference in length. The usual factor of ten gives scores between 0 and 10.

ROUGE-L (Lin, ACL workshop 2004, section 3.1): the best precision and the best recall over the references, which may be
of two references, with recall weighted by beta 1.2.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
"""Words that count as two tokens."""

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
    """Split a caption into lowercase tokens, without punctuation."""
    separated = _FUSED.sub(lambda match: f" {_TWO_WORDS.get(match[0], match[0])}", caption.lower())
    return _WORD.findall(separated)


_MAX_N = 4
_SMALL, _TINY = 1e-9, 1e-15
"""Avoid divisions by zero as pycocoevalcap does; without a common n-gram the score is nearly 0, not 0."""

NGram = tuple[str, ...]


def bleu(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[float]:
    """Return BLEU-1 to BLEU-4, between 0 and 1, of a caption of each image against its human captions."""
    candidate_length, reference_length = 0, 0
    matches, totals = [0] * _MAX_N, [0] * _MAX_N
    for name, texts in references.items():
        tokens = ptb_tokenize(candidates[name])
        reference_tokens = [ptb_tokenize(text) for text in texts]
        candidate_length += len(tokens)
        reference_length += min(
            map(len, reference_tokens), key=lambda length: (abs(length - len(tokens)), length)
        )
        for n in range(1, _MAX_N + 1):
            limits: Counter[NGram] = Counter()
            for reference in reference_tokens:
                limits |= ngrams(reference, n)
            matches[n - 1] += (ngrams(tokens, n) & limits).total()
            totals[n - 1] += max(0, len(tokens) - n + 1)
    ratio = (candidate_length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores: list[float] = []
    product = 1.0
    for n, (num_matches, total) in enumerate(zip(matches, totals, strict=True), start=1):
        product *= (num_matches + _TINY) / (total + _SMALL)
        scores.append(brevity * product ** (1 / n))
    return scores


def ngrams(tokens: Sequence[str], n: int) -> Counter[NGram]:
    """Count the n-grams of one length."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


_SIGMA = 6.0
"""Width of the length penalty, in tokens."""

_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class _Vector:
    """TF-IDF weights of a caption's n-grams."""

    weights: dict[NGram, float]
    norms: tuple[float, ...]
    length: int


def _all_ngrams(text: str) -> Counter[NGram]:
    """Count the n-grams of a caption of all lengths."""
    tokens = ptb_tokenize(text)
    counts: Counter[NGram] = Counter()
    for n in range(1, _MAX_N + 1):
        counts.update(ngrams(tokens, n))
    return counts


def cider_d(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return the mean CIDEr-D of a caption of each image against its human captions."""
    scores = cider_d_per_image(candidates, references)
    return sum(scores.values()) / len(scores)


def cider_d_per_image(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Return CIDEr-D by image id; document frequencies are counted over the references."""
    frequencies: Counter[NGram] = Counter()
    for texts in references.values():
        frequencies.update({ngram for text in texts for ngram in _all_ngrams(text)})
    num_images = len(references)
    return {
        name: _similarity(
            _vectorize(candidates[name], frequencies, num_images),
            [_vectorize(text, frequencies, num_images) for text in texts],
        )
        for name, texts in references.items()
    }


def _vectorize(text: str, frequencies: Mapping[NGram, int], num_images: int) -> _Vector:
    """Weight the n-grams of a caption by the inverse of the number of images with them."""
    weights = {
        ngram: count * (math.log(num_images) - math.log(max(1, frequencies[ngram])))
        for ngram, count in _all_ngrams(text).items()
    }
    norms = tuple(
        math.sqrt(sum(weight**2 for ngram, weight in weights.items() if len(ngram) == n))
        for n in range(1, _MAX_N + 1)
    )
    return _Vector(weights, norms, len(ptb_tokenize(text)))


def _similarity(candidate: _Vector, references: Sequence[_Vector]) -> float:
    """Return the mean similarity of a candidate over references and n-gram lengths."""
    total = 0.0
    for reference in references:
        penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * _SIGMA**2))
        for n in range(1, _MAX_N + 1):
            product = sum(
                min(weight, reference.weights.get(ngram, 0.0)) * reference.weights.get(ngram, 0.0)
                for ngram, weight in candidate.weights.items()
                if len(ngram) == n
            )
            norm = candidate.norms[n - 1] * reference.norms[n - 1]
            total += penalty * product / norm if norm else 0.0
    return _SCALE * total / (_MAX_N * len(references))


_BETA = 1.2


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """Return ROUGE-L of one caption against the human captions of its image, between 0 and 1."""
    tokens = ptb_tokenize(candidate)
    precision = recall = 0.0
    for text in references:
        reference = ptb_tokenize(text)
        if tokens and reference:
            common = _common_subsequence_length(tokens, reference)
            precision = max(precision, common / len(tokens))
            recall = max(recall, common / len(reference))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def mean_rouge_l(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return the mean ROUGE-L of a caption of each image against its human captions."""
    scores = [rouge_l(candidates[name], texts) for name, texts in references.items()]
    return sum(scores) / len(scores)


def _common_subsequence_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for token in first:
        previous = lengths
        lengths = [0]
        for index, other in enumerate(second, start=1):
            if token == other:
                lengths.append(previous[index - 1] + 1)
            else:
                lengths.append(max(previous[index], lengths[index - 1]))
    return lengths[-1]
