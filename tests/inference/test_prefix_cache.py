"""Prefixes match only where tokens and images are equal, and the byte budget holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from caldera.images.anyres import SINGLE_VIEW
from caldera.inference.prefix_cache import LeastRecentlyUsed, PrefixCache
from caldera.inference.prompts import ProcessedImage, Prompt

BYTES = torch.zeros(3, dtype=torch.uint8)


def prompt(text: str) -> Prompt:
    """Return a prompt: letters are tokens, a digit is an image with that digest, three tokens long."""
    ids: list[int] = []
    images, starts = [], []
    for sign in text:
        if sign.isdigit():
            images.append(ProcessedImage(sign, BYTES, SINGLE_VIEW, (1, 1)))
            starts.append(len(ids))
            ids += [0, 0, 0]
        else:
            ids.append(ord(sign))
    return Prompt(tuple(ids), tuple(images), tuple(starts))


def common_length(first: str, second: str) -> int:
    """Return the number of common tokens, sign by sign."""
    common = 0
    for sign, other in zip(first, second, strict=False):
        if sign != other:
            break
        common += 3 if sign.isdigit() else 1
    return common


@given(cached=st.lists(st.text("ab01", max_size=6), max_size=5), new=st.text("ab01", max_size=6))
def test_the_longest_common_prefix_is_found(cached: list[str], new: str) -> None:
    """For any prompts of tokens and images, as a comparison sign by sign gives it."""
    cache = PrefixCache(1 << 20)
    for number, text in enumerate(cached):
        cache.insert(prompt(text), (torch.full((2,), number),))
    best = max((common_length(text, new) for text in cached), default=0)
    match = cache.lookup(prompt(new))
    assert (0 if match is None else match[1]) == best
    if match is not None:
        assert common_length(cached[int(match[0][0][0])], new) == best


def test_a_longer_prompt_replaces_its_prefixes() -> None:
    """A conversation is cached once, not once for each turn."""
    cache = PrefixCache(1 << 20)
    for text in ("a1b", "a1bcd", "a2b"):
        cache.insert(prompt(text), (torch.zeros(4),))
    assert cache.bytes == 2 * 16


def test_the_least_recently_used_goes_first() -> None:
    """By bytes and by number; a value over the budget is not cached."""
    cache: LeastRecentlyUsed[str, int] = LeastRecentlyUsed(10, 3)
    for name in "abc":
        cache.put(name, ord(name), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", 0, 3)
    assert (cache.get("b"), cache.bytes) == (None, 9)
    cache.put("e", 0, 8)
    assert cache.keys() == ["e"]
    cache.put("f", 0, 11)
    assert (cache.keys(), cache.bytes) == (["e"], 8)
    cache.drop("nothing")
    assert cache.bytes == 8
