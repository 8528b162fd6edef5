"""Only what is equal, token by token and image by image, is found again; the budget holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from caldera.images.anyres import SINGLE_VIEW
from caldera.inference.prefix_cache import LeastRecentlyUsed, PrefixCache
from caldera.inference.prompts import ProcessedImage, Prompt

BYTES = torch.zeros(3, dtype=torch.uint8)


def prompt(said: str) -> Prompt:
    """Return a prompt: letters are words, a digit is the image of that digest, three tokens long."""
    ids: list[int] = []
    images, starts = [], []
    for sign in said:
        if sign.isdigit():
            images.append(ProcessedImage(sign, BYTES, SINGLE_VIEW, (1, 1)))
            starts.append(len(ids))
            ids += [0, 0, 0]
        else:
            ids.append(ord(sign))
    return Prompt(tuple(ids), tuple(images), tuple(starts))


def length_of_common(one: str, other: str) -> int:
    """Count common tokens the slow way: sign by sign."""
    common = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        common += 3 if mine.isdigit() else 1
    return common


@given(kept=st.lists(st.text("ab01", max_size=6), max_size=5), asked=st.text("ab01", max_size=6))
def test_the_longest_common_start_is_found(kept: list[str], asked: str) -> None:
    """For any prompts of words and images, as comparing sign by sign finds it."""
    cache = PrefixCache(1 << 20)
    for number, said in enumerate(kept):
        cache.insert(prompt(said), (torch.full((2,), number),))
    best = max((length_of_common(said, asked) for said in kept), default=0)
    found = cache.lookup(prompt(asked))
    assert (0 if found is None else found[1]) == best
    if found is not None:
        assert length_of_common(kept[int(found[0][0][0])], asked) == best


def test_a_longer_prompt_takes_the_place_of_its_starts() -> None:
    """So a talk is kept once, not once for each turn."""
    cache = PrefixCache(1 << 20)
    for said in ("a1b", "a1bcd", "a2b"):
        cache.insert(prompt(said), (torch.zeros(4),))
    assert cache.bytes == 2 * 16


def test_the_least_recently_used_goes_first() -> None:
    """By bytes and by number; what alone is over the budget is not kept."""
    kept: LeastRecentlyUsed[str, int] = LeastRecentlyUsed(10, 3)
    for name in "abc":
        kept.put(name, ord(name), 3)
    assert kept.get("a") == ord("a")
    kept.put("d", 0, 3)
    assert (kept.get("b"), kept.bytes) == (None, 9)
    kept.put("e", 0, 8)
    assert kept.keys() == ["e"]
    kept.put("f", 0, 11)
    assert (kept.keys(), kept.bytes) == (["e"], 8)
    kept.drop("nothing")
    assert kept.bytes == 8
