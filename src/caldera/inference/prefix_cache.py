"""What was computed for earlier prompts in, as much of it as the next prompt begins with out; bounded in bytes.

Nothing is found by a short hash: tokens are compared one by one, and pictures by their whole sha256.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from caldera.inference.decoder import KeysAndValues
from caldera.inference.prompts import Prompt

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Values up to a number of bytes; what was not used for longest goes first."""

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes."""
        self._budget = budget
        self._kept: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key) -> Value | None:
        """Return a value, which counts as used now; None if it is not kept."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keys(self) -> list[Key]:
        """Return all keys, those not used for longest first."""
        return list(self._kept)

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, unless it alone is over the budget."""
        self.drop(key)
        if size > self._budget:
            return
        self._kept[key] = value, size
        self.bytes += size
        while self.bytes > self._budget:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        """Let go of a value, if it is kept."""
        _, size = self._kept.pop(key, (None, 0))
        self.bytes -= size


def common_start(one: Prompt, other: Prompt) -> int:
    """Count the tokens that two prompts have in common at their start: same ids, under them the same pictures."""
    length = min(len(one.ids), len(other.ids))
    differ = np.nonzero(np.not_equal(one.ids[:length], other.ids[:length]))[0]
    length = int(differ[0]) if len(differ) else length
    places = zip(one.pictures, one.starts, other.pictures, other.starts, strict=False)
    for mine, at, theirs, there in places:
        if mine.digest != theirs.digest or at != there:
            return min(length, at, there)
    shown = min(len(one.pictures), len(other.pictures))
    further = (*one.starts[shown:], *other.starts[shown:])
    return min(length, *further) if further else length


class PrefixCache:
    """Keys and values of earlier prompts and their answers."""

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes."""
        self._kept: LeastRecentlyUsed[Prompt, KeysAndValues] = LeastRecentlyUsed(budget)

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return self._kept.bytes

    def find(self, prompt: Prompt) -> tuple[KeysAndValues, int] | None:
        """Return what is kept of the longest common start with a prompt, and how many tokens of it are common."""
        best, length = None, 0
        for key in self._kept.keys():  # noqa: SIM118 - no dict
            if (common := common_start(key, prompt)) > length:
                best, length = key, common
        if best is None:
            return None
        kept = self._kept.get(best)
        assert kept is not None
        return kept, length

    def keep(self, prompt: Prompt, computed: KeysAndValues) -> None:
        """Keep what was computed for a prompt, in place of what is kept for starts of it."""
        for key in self._kept.keys():  # noqa: SIM118 - no dict
            if common_start(key, prompt) == len(key.ids):
                self._kept.drop(key)
        self._kept.put(prompt, computed, sum(part.nbytes for part in computed))
