"""Captions and what people wrote in, ROUGE-L out: the longest common subsequence of words.

Lin, ROUGE (ACL workshop 2004, section 3.1), in the form in which COCO's captions are scored (pycocoevalcap): the best
precision and the best recall over the references, which may be two of them, with recall weighed by beta 1.2.
"""

from collections.abc import Mapping, Sequence

from caldera.evaluation.caption_words import ptb_tokenize

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
