"""What was computed for earlier prompts in, as much of it as the next prompt begins with out; bounded in bytes.

Nothing is found by a short hash: tokens are compared one by one, and images by their whole sha256.
"""

from collections import OrderedDict
from collections.abc import Hashable
from itertools import zip_longest
from typing import Generic, TypeVar

import numpy as np

from caldera.inference.decoder import KVCache
from caldera.inference.prompts import Prompt

_MOST = 256
"""Prompts that are kept; each is compared with every new one."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Values up to a number and a number of bytes; what was not used for longest goes first."""

    def __init__(self, budget: int, most: int) -> None:
        """Keep at most `budget` bytes and `most` values."""
        self._budget, self._most = budget, most
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
        while self.bytes > self._budget or len(self._kept) > self._most:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        """Let go of a value, if it is kept."""
        _, size = self._kept.pop(key, (None, 0))
        self.bytes -= size


class _PrefixKey:
    """A prompt, ready to be compared with many others."""

    def __init__(self, prompt: Prompt) -> None:
        self.ids = np.array(prompt.ids)
        self._shown = [
            (image.digest, at) for image, at in zip(prompt.images, prompt.starts, strict=True)
        ]

    def common_length(self, other: "_PrefixKey") -> int:
        """Count the tokens that both have at their start: same ids, under them the same images."""
        length = min(len(self.ids), len(other.ids))
        differ = self.ids[:length] != other.ids[:length]
        at = int(differ.argmax()) if length else 0
        if length and differ[at]:
            length = at
        for mine, theirs in zip_longest(self._shown, other._shown):
            if mine != theirs:
                return min(length, *(place for _, place in filter(None, (mine, theirs))))
        return length


class PrefixCache:
    """Keys and values of earlier prompts and their answers."""

    def __init__(self, budget: int) -> None:
        """Keep at most `budget` bytes."""
        self._kept: LeastRecentlyUsed[_PrefixKey, KVCache] = LeastRecentlyUsed(budget, _MOST)

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return self._kept.bytes

    def lookup(self, prompt: Prompt) -> tuple[KVCache, int] | None:
        """Return what is kept of the longest common start with a prompt, and how many tokens of it are common."""
        asked = _PrefixKey(prompt)
        found = [(key.common_length(asked), key) for key in self._kept.keys()]  # noqa: SIM118 - no dict
        length, best = max(found, key=lambda one: one[0], default=(0, asked))
        kept = self._kept.get(best)
        return None if kept is None or length == 0 else (kept, length)

    def insert(self, prompt: Prompt, computed: KVCache) -> None:
        """Keep what was computed for a prompt, in place of what is kept for starts of it."""
        begun = _PrefixKey(prompt)
        for key in self._kept.keys():  # noqa: SIM118 - no dict
            if key.common_length(begun) == len(key.ids):
                self._kept.drop(key)
        self._kept.put(begun, computed, sum(part.nbytes for part in computed))
