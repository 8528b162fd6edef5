"""Kept features are those the tower gave, survive a kill, and belong to content, not to names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches.feature_store import FeatureStore
from caldera.batches.image_sources import CachedFeatures, DecodedImages, FrozenTower, cache_features
from caldera.errors import InputError
from caldera.images.processor import ImageProcessor
from caldera.progress import NoProgress

PROCESSOR = ImageProcessor(side=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def keep(
    folder: Path,
    paths: list[Path],
    encode: Callable[[Tensor], Tensor],
    bad: list[Path] | None = None,
) -> CachedFeatures:
    """Keep features in `folder`."""

    def on_fault(path: Path, fault: InputError) -> None:
        assert bad is not None, fault
        bad.append(path)

    return cache_features(
        FeatureStore(folder, "store"),
        paths,
        tower=FrozenTower(PROCESSOR, encode, (9, 3)),
        progress=NoProgress(),
        on_error=on_fault,
    )


class Counting:
    """A stand-in tower that counts what it looks at: features are the pixels, (images, 9, 3)."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels as patches."""
        self.seen += len(pixels)
        return pixels.flatten(2).transpose(1, 2)


def test_features_come_back_in_any_order(tmp_path: Path, photos: Path) -> None:
    """Looked up by path, they equal what the tower gives, to bf16."""
    paths = sorted(photos.iterdir())
    source = keep(tmp_path, paths, Counting())

    asked = [paths[4], paths[0], paths[4]]

    expected = Counting()(DecodedImages(PROCESSOR)(asked)).to(torch.bfloat16)
    assert torch.equal(source(asked), expected)


def test_content_is_looked_at_once(tmp_path: Path, photos: Path) -> None:
    """Neither a second start nor a copy under another name looks again."""
    tower = Counting()
    paths = sorted(photos.iterdir())
    keep(tmp_path, paths[:3], tower)
    copy = photos / "copy.png"
    copy.write_bytes(paths[1].read_bytes())

    source = keep(tmp_path, [*paths, copy], tower)

    assert tower.seen == len(paths)
    assert torch.equal(source([copy]), source([paths[1]]))


def test_a_kill_in_the_middle_loses_only_the_last_rows(tmp_path: Path, photos: Path) -> None:
    """Rows without a whole line in the journal are written again, in their place."""
    paths = sorted(photos.iterdir())
    whole = keep(tmp_path / "whole", paths, Counting())(paths)
    keep(tmp_path / "torn", paths[:4], Counting())
    journal = tmp_path / "torn" / "store.jsonl"
    journal.write_text(journal.read_text()[:-5])
    with (tmp_path / "torn" / "store.bin").open("ab") as data:
        data.write(b"half a row")

    assert torch.equal(keep(tmp_path / "torn", paths, Counting())(paths), whole)
    assert json.loads(journal.read_text().splitlines()[0]) == {"shape": [9, 3]}
    tower = Counting()
    keep(tmp_path / "torn", paths, tower)
    assert tower.seen == 0, "a row was written behind a torn line, and not found again"


@pytest.mark.parametrize("left", ["", '{"shape": [9'])
def test_a_kill_before_the_first_line_is_whole_loses_nothing(
    tmp_path: Path, photos: Path, left: str
) -> None:
    """A journal that was only opened, or holds half of its first line, is begun anew."""
    paths = sorted(photos.iterdir())
    (tmp_path / "store.jsonl").write_text(left)
    for start in range(2):
        tower = Counting()
        source = keep(tmp_path, paths, tower)
        assert torch.equal(
            source(paths[:1]), Counting()(DecodedImages(PROCESSOR)(paths[:1])).bfloat16()
        )
        assert tower.seen == (0 if start else len(paths))


def test_where_no_image_is_usable_there_are_no_features(tmp_path: Path) -> None:
    """The source is empty; whoever asked decides what that means."""
    bad: list[Path] = []
    source = keep(tmp_path, [tmp_path / "missing.png"], Counting(), bad)
    assert bad == [tmp_path / "missing.png"]
    with pytest.raises(KeyError):
        source(bad)


def test_bad_images_are_told_and_left_out(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken and a missing image are reported; the others are kept."""
    (photos / "0.png").write_bytes(b"broken")
    paths = [*sorted(photos.iterdir()), photos / "missing.png"]
    bad: list[Path] = []

    source = keep(tmp_path, paths, Counting(), bad)

    assert sorted(bad) == [photos / "0.png", photos / "missing.png"]
    assert source(paths[1:7]).shape == (6, 9, 3)
    assert not caplog.records
    with pytest.raises(KeyError):
        source([photos / "0.png"])
