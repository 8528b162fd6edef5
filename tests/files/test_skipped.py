"""Bad items stop the work at the first, or are left out up to a stated share and all listed."""

import json
from pathlib import Path

import pytest

from caldera.errors import AnnotationError, ImageError, InputError, OutputError
from caldera.files.skipped import SkippedItem, SkippedItems


def test_by_default_the_first_fault_is_raised_as_it_is() -> None:
    """The very error, not one like it, and nothing is noted."""
    skips, fault = SkippedItems(), ImageError("a.jpg is cut off")
    with pytest.raises(ImageError) as caught:
        skips.add_or_raise("a.jpg", fault)
    assert caught.value is fault
    assert skips.items == []


@pytest.mark.parametrize(("total", "stops"), [(19, True), (20, False), (21, False)])
def test_the_share_left_out_may_be_reached_but_not_passed(total: int, stops: bool) -> None:
    """Two of twenty are a tenth, two of nineteen are more."""
    skips = SkippedItems(0.1)
    skips.add_or_raise("a.jpg", ImageError("it is cut off"))
    skips.add_or_raise("b.jpg", AnnotationError("it has no caption"))
    if not stops:
        skips.raise_if_over_limit(total)
        return
    message = r"2 of 19 items are bad, over the allowed share of 0\.1; the first: a\.jpg: it is cut"
    with pytest.raises(InputError, match=message):
        skips.raise_if_over_limit(total)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_where_nothing_is_bad_nothing_is_raised(share: float) -> None:
    """Also of no items at all."""
    SkippedItems(share).raise_if_over_limit(0)
    SkippedItems(share).raise_if_over_limit(7)


def test_everything_left_out_is_listed_in_order(tmp_path: Path) -> None:
    """A line of JSON for each, with any letters and line breaks in the reason."""
    skips = SkippedItems(1.0)
    for where, reason in (("é.jpg", "two\nlines"), ("b.jpg", 'a "quote"')):
        skips.add_or_raise(where, InputError(reason))

    skips.write(tmp_path / "new" / "bad.jsonl")

    lines = (tmp_path / "new" / "bad.jsonl").read_text().splitlines()
    assert [SkippedItem(**json.loads(line)) for line in lines] == skips.items
    assert skips.items[0] == SkippedItem("é.jpg", "two\nlines")


def test_a_list_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the error says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*bad\.jsonl: .*choose another place"):
        SkippedItems().write(tmp_path / "file" / "bad.jsonl")
