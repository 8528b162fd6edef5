"""Texts in, those that are nearly an earlier one out: the same for the same texts, in any run.

Two texts are near duplicates if four fifths of all runs of three words in either are in both. A text is compared with
those that share one of a few run hashes, the ones that the fewest texts have: a run that all have ("what is the") would
make every text a candidate, and a hundred thousand are not to be compared with each other.
"""

import re
import zlib
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

_MIN_JACCARD = 0.8
_SKETCH_SIZE, _LOOKUPS = 8, 4
"""A text is kept under so many of its smallest run hashes, and looked for under so many of those, the rarest."""

_MIN_SHINGLES = 12
"""Words below which only equal texts count: short ones are alike by nature."""


class NearDuplicateIndex:
    """Remembers texts, and finds the first that a new one nearly repeats."""

    def __init__(self) -> None:
        """Begin without any."""
        self._runs: list[NDArray[np.uint32]] = []
        self._names: list[str] = []
        self._with: dict[int, list[int]] = defaultdict(list)
        self.compared = 0
        """Pairs of texts that had to be compared."""

    def find(self, name: str, text: str) -> str | None:
        """Return the name of an earlier text that this one nearly repeats, else remember it and return None."""
        words = re.findall(r"\w+", re.sub(r"([\u2e80-\uffff])", r" \1 ", text.casefold()))
        length = 3 if len(words) >= _MIN_SHINGLES else max(1, len(words))
        runs = {
            zlib.crc32(" ".join(words[at : at + length]).encode())
            for at in range(max(1, len(words) - length + 1))
        }
        sketch = sorted(runs)[:_SKETCH_SIZE]
        array = np.array(sorted(runs), dtype=np.uint32)
        rarest = sorted(sketch, key=lambda mark: len(self._with[mark]))[:_LOOKUPS]
        for earlier in sorted({index for mark in rarest for index in self._with[mark]}):
            if not _MIN_JACCARD <= len(array) / len(self._runs[earlier]) <= 1 / _MIN_JACCARD:
                continue
            self.compared += 1
            shared = len(np.intersect1d(array, self._runs[earlier], assume_unique=True))
            if shared >= _MIN_JACCARD * (len(array) + len(self._runs[earlier]) - shared):
                return self._names[earlier]
        for mark in sketch:
            self._with[mark].append(len(self._names))
        self._runs.append(array)
        self._names.append(name)
        return None
