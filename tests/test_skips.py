"""Bad items stop the work at the first, or are left out up to a stated share and all listed."""

import json
from pathlib import Path

import pytest

from caldera.errors import AnnotationError, InputError, OutputError, PictureError
from caldera.skips import Skip, Skips


def test_by_default_the_first_fault_is_raised_as_it_is() -> None:
    """The very error, not one like it, and nothing is noted."""
    skips, fault = Skips(), PictureError("a.jpg is cut off")
    with pytest.raises(PictureError) as caught:
        skips.take("a.jpg", fault)
    assert caught.value is fault
    assert skips.taken == []


@pytest.mark.parametrize(("total", "stops"), [(19, True), (20, False), (21, False)])
def test_the_share_left_out_may_be_reached_but_not_passed(total: int, stops: bool) -> None:
    """Two of twenty are a tenth, two of nineteen are more."""
    skips = Skips(0.1)
    skips.take("a.jpg", PictureError("it is cut off"))
    skips.take("b.jpg", AnnotationError("it has no caption"))
    if not stops:
        skips.check(total)
        return
    message = r"2 of 19 items are bad, over the allowed share of 0\.1; the first: a\.jpg: it is cut"
    with pytest.raises(InputError, match=message):
        skips.check(total)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_where_nothing_is_bad_nothing_is_raised(share: float) -> None:
    """Also of no items at all."""
    Skips(share).check(0)
    Skips(share).check(7)


def test_everything_left_out_is_listed_in_order(tmp_path: Path) -> None:
    """A line of JSON for each, with any letters and line breaks in the reason."""
    skips = Skips(1.0)
    for where, reason in (("é.jpg", "two\nlines"), ("b.jpg", 'a "quote"')):
        skips.take(where, InputError(reason))

    skips.write(tmp_path / "new" / "bad.jsonl")

    lines = (tmp_path / "new" / "bad.jsonl").read_text().splitlines()
    assert [Skip(**json.loads(line)) for line in lines] == skips.taken
    assert skips.taken[0] == Skip("é.jpg", "two\nlines")


def test_a_list_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """Where a file stands in the folder's place, the error says so."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*bad\.jsonl: .*choose another place"):
        Skips().write(tmp_path / "file" / "bad.jsonl")
