"""Prefix cache: keys and values of earlier prompts, reused for prompts with the same beginning, within a byte budget.

Prefixes are matched exactly: token by token, and images by their full sha256.
"""

from collections import OrderedDict
from collections.abc import Hashable
from itertools import zip_longest
from typing import Generic, TypeVar

import numpy as np

from caldera.inference.decoder import KVCache
from caldera.inference.prompts import Prompt

_CAPACITY = 256
"""Maximum number of prompts; each is compared with every new one."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LeastRecentlyUsed(Generic[Key, Value]):
    """Least recently used cache, bounded by a number of values and their bytes."""

    def __init__(self, budget: int, capacity: int) -> None:
        """Hold at most `budget` bytes and `capacity` values."""
        self._budget, self._capacity = budget, capacity
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.bytes = 0

    def get(self, key: Key) -> Value | None:
        """Return a value and mark it as used; None if it is not cached."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def keys(self) -> list[Key]:
        """Return all keys, least recently used first."""
        return list(self._values)

    def put(self, key: Key, value: Value, size: int) -> None:
        """Cache a value of `size` bytes, unless it exceeds the budget by itself."""
        self.drop(key)
        if size > self._budget:
            return
        self._values[key] = value, size
        self.bytes += size
        while self.bytes > self._budget or len(self._values) > self._capacity:
            self.drop(next(iter(self._values)))

    def drop(self, key: Key) -> None:
        """Release a value, if it is cached."""
        _, size = self._values.pop(key, (None, 0))
        self.bytes -= size


class _PrefixKey:
    """A prompt in a form that is quick to compare."""

    def __init__(self, prompt: Prompt) -> None:
        self.ids = np.array(prompt.ids)
        self._images = [
            (image.digest, start) for image, start in zip(prompt.images, prompt.starts, strict=True)
        ]

    def common_length(self, other: "_PrefixKey") -> int:
        """Return the length of the common prefix: equal ids, with equal images under them."""
        length = min(len(self.ids), len(other.ids))
        differ = self.ids[:length] != other.ids[:length]
        if length and differ[first := int(differ.argmax())]:
            length = first
        for image, other_image in zip_longest(self._images, other._images):
            if image != other_image:
                starts = [start for _, start in filter(None, (image, other_image))]
                return min(length, *starts)
        return length


class PrefixCache:
    """Keys and values of earlier prompts and their answers."""

    def __init__(self, budget: int) -> None:
        """Hold at most `budget` bytes."""
        self._cached: LeastRecentlyUsed[_PrefixKey, KVCache] = LeastRecentlyUsed(budget, _CAPACITY)

    @property
    def bytes(self) -> int:
        """Bytes in use."""
        return self._cached.bytes

    def lookup(self, prompt: Prompt) -> tuple[KVCache, int] | None:
        """Return the entry with the longest common prefix, and the length of that prefix."""
        new_key = _PrefixKey(prompt)
        lengths = [(key.common_length(new_key), key) for key in self._cached.keys()]  # noqa: SIM118 - no dict
        length, key = max(lengths, key=lambda pair: pair[0], default=(0, new_key))
        cached = self._cached.get(key)
        return None if cached is None or length == 0 else (cached, length)

    def insert(self, prompt: Prompt, computed: KVCache) -> None:
        """Cache the keys and values of a prompt; they replace those of its prefixes."""
        new_key = _PrefixKey(prompt)
        for key in self._cached.keys():  # noqa: SIM118 - no dict
            if key.common_length(new_key) == len(key.ids):
                self._cached.drop(key)
        self._cached.put(new_key, computed, sum(part.nbytes for part in computed))
