"""Tests of skipped items: the first error is raised, or items are skipped up to a limit and listed."""

import json
from pathlib import Path

import pytest

from caldera.errors import AnnotationError, ImageError, InputError, OutputError
from caldera.files.skipped_items import SkippedItem, SkippedItems


def test_by_default_the_first_error_is_raised() -> None:
    """The same exception is raised, and no item is recorded."""
    skipped, error = SkippedItems(), ImageError("a.jpg is truncated")
    with pytest.raises(ImageError) as caught:
        skipped.add_or_raise("a.jpg", error)
    assert caught.value is error
    assert skipped.items == []


@pytest.mark.parametrize(("total", "stops"), [(19, True), (20, False), (21, False)])
def test_the_limit_may_be_reached_but_not_exceeded(total: int, stops: bool) -> None:
    """Two of twenty are a tenth, two of nineteen are more."""
    skipped = SkippedItems(0.1)
    skipped.add_or_raise("a.jpg", ImageError("it is truncated"))
    skipped.add_or_raise("b.jpg", AnnotationError("it has no caption"))
    if not stops:
        skipped.raise_if_over_limit(total)
        return
    message = r"2 of 19 items are invalid, over the limit of 0\.1; the first: a\.jpg: it is trunc"
    with pytest.raises(InputError, match=message):
        skipped.raise_if_over_limit(total)


@pytest.mark.parametrize("max_fraction", [0.0, 0.5, 1.0])
def test_without_skipped_items_nothing_is_raised(max_fraction: float) -> None:
    """Also for a total of 0."""
    SkippedItems(max_fraction).raise_if_over_limit(0)
    SkippedItems(max_fraction).raise_if_over_limit(7)


@pytest.mark.parametrize("message", ["a.csv:3: is empty", "a.csv:3 is empty", "is empty"])
def test_the_location_is_not_repeated_in_the_reason(message: str) -> None:
    """Messages start with it or not; the list has it once."""
    skipped = SkippedItems(1.0)
    skipped.add_or_raise("a.csv:3", InputError(message))
    assert skipped.items == [SkippedItem("a.csv:3", "is empty")]


def test_all_skipped_items_are_written_in_order(tmp_path: Path) -> None:
    """Each is a line of JSON, with any letters and line breaks in the reason."""
    skipped = SkippedItems(1.0)
    for location, reason in (("é.jpg", "two\nlines"), ("b.jpg", 'a "quote"')):
        skipped.add_or_raise(location, InputError(reason))

    skipped.write(tmp_path / "new" / "skipped.jsonl")

    lines = (tmp_path / "new" / "skipped.jsonl").read_text().splitlines()
    assert [SkippedItem(**json.loads(line)) for line in lines] == skipped.items
    assert skipped.items[0] == SkippedItem("é.jpg", "two\nlines")


def test_a_list_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    """A file in place of the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*skipped\.jsonl: .*choose another path"):
        SkippedItems().write(tmp_path / "file" / "skipped.jsonl")


def test_the_report_counts_reasons_and_lists_every_item(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What differs between items of one reason is left out; a reason that occurs once is told in full."""
    skipped, listing = SkippedItems(0.5), tmp_path / "data.skipped.jsonl"
    for name in ("a.jpg", "b 2.jpg"):
        skipped.add_or_raise(name, ImageError(f"cannot read {name!r}: 300 x 200 is too small"))
    skipped.add_or_raise("c.jpg", AnnotationError("image c.jpg has no caption"))
    skipped.note("d.jpg", "box [1, 2, 0, 0] is empty and was left out")

    skipped.finish(6, listing)

    assert [record.getMessage() for record in caplog.records] == [
        f"skipped 3 of 6 items, listed in {listing}: 2 x cannot read ...: ... is too small; "
        "1 x image c.jpg has no caption",
        f"changed 1, listed in {listing}: 1 x box [1, 2, 0, 0] is empty and was left out",
    ]
    actions = [json.loads(line)["action"] for line in listing.read_text().splitlines()]
    assert actions == ["skipped"] * 3 + ["changed"]


def test_over_the_limit_the_list_is_still_written(tmp_path: Path) -> None:
    """The message names the list; changed items do not count."""
    skipped, listing = SkippedItems(0.1), tmp_path / "list.jsonl"
    skipped.add_or_raise("a.jpg", ImageError("it is truncated"))
    skipped.note("b.jpg", "it was rotated")
    with pytest.raises(InputError, match=r"1 of 9 items are invalid.*all are listed in .*list"):
        skipped.finish(9, listing)
    assert len(listing.read_text().splitlines()) == 2


def test_nothing_to_report_writes_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No empty list, no log line; the list of an earlier run is removed."""
    (tmp_path / "list.jsonl").write_text("{}")
    SkippedItems(0.1).finish(5, tmp_path / "list.jsonl")
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_a_summary_can_be_encoded(caplog: pytest.LogCaptureFixture) -> None:
    """A file name may hold half of a surrogate pair, which no log in UTF-8 takes."""
    skipped = SkippedItems(1.0)
    skipped.add_or_raise("a.json", InputError("a.json: \ud800 does not exist"))
    skipped.finish(1)
    assert "\\ud800 does not exist" in caplog.text
    caplog.text.encode()
