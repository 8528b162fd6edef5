"""Cached features are those of the tower, survive a kill, and belong to content, not to names."""

import json
import logging
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


def cache(
    folder: Path,
    paths: list[Path],
    encode: Callable[[Tensor], Tensor],
    unusable: list[Path] | None = None,
) -> CachedFeatures:
    """Cache features in `folder`."""

    def on_error(path: Path, error: InputError) -> None:
        assert unusable is not None, error
        unusable.append(path)

    return cache_features(
        FeatureStore(folder, "store"),
        paths,
        tower=FrozenTower(PROCESSOR, encode, (9, 3)),
        progress=NoProgress(),
        on_error=on_error,
    )


class CountingTower:
    """Tower that counts the images it encodes; its features are the pixels, (images, 9, 3)."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels as patches."""
        self.count += len(pixels)
        return pixels.flatten(2).transpose(1, 2)


def test_features_are_returned_in_any_order(tmp_path: Path, photos: Path) -> None:
    """Looked up by path, they equal those of the tower, to bf16."""
    paths = sorted(photos.iterdir())
    source = cache(tmp_path, paths, CountingTower())

    images = [paths[4], paths[0], paths[4]]

    expected = CountingTower()(DecodedImages(PROCESSOR)(images)).to(torch.bfloat16)
    assert torch.equal(source(images), expected)


def test_content_is_encoded_once(tmp_path: Path, photos: Path) -> None:
    """Neither a second start nor a copy under another name encodes it again."""
    tower = CountingTower()
    paths = sorted(photos.iterdir())
    cache(tmp_path, paths[:3], tower)
    copy = photos / "copy.png"
    copy.write_bytes(paths[1].read_bytes())

    source = cache(tmp_path, [*paths, copy], tower)

    assert tower.count == len(paths)
    assert torch.equal(source([copy]), source([paths[1]]))


def test_a_kill_in_the_middle_loses_only_the_last_rows(tmp_path: Path, photos: Path) -> None:
    """Rows without a complete line in the index are written again, at the same location."""
    paths = sorted(photos.iterdir())
    expected = cache(tmp_path / "complete", paths, CountingTower())(paths)
    cache(tmp_path / "partial", paths[:4], CountingTower())
    index = tmp_path / "partial" / "store.jsonl"
    index.write_text(index.read_text()[:-5])
    with (tmp_path / "partial" / "store.bin").open("ab") as data:
        data.write(b"half a row")

    assert torch.equal(cache(tmp_path / "partial", paths, CountingTower())(paths), expected)
    assert json.loads(index.read_text().splitlines()[0]) == {"shape": [9, 3]}
    tower = CountingTower()
    cache(tmp_path / "partial", paths, tower)
    assert tower.count == 0, "a row was written after a partial line, and not found again"


@pytest.mark.parametrize("content", ["", '{"shape": [9'])
def test_a_kill_before_the_first_line_is_complete_loses_nothing(
    tmp_path: Path, photos: Path, content: str
) -> None:
    """An index that was only opened, or holds half of its first line, is started again."""
    paths = sorted(photos.iterdir())
    (tmp_path / "store.jsonl").write_text(content)
    for start in range(2):
        tower = CountingTower()
        source = cache(tmp_path, paths, tower)
        assert torch.equal(
            source(paths[:1]), CountingTower()(DecodedImages(PROCESSOR)(paths[:1])).bfloat16()
        )
        assert tower.count == (0 if start else len(paths))


def test_without_a_usable_image_there_are_no_features(tmp_path: Path) -> None:
    """The source is empty; the caller decides what that means."""
    unusable: list[Path] = []
    source = cache(tmp_path, [tmp_path / "missing.png"], CountingTower(), unusable)
    assert unusable == [tmp_path / "missing.png"]
    with pytest.raises(KeyError):
        source(unusable)


def test_unusable_images_are_reported_and_skipped(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A corrupt and a missing image are reported; the others are cached."""
    (photos / "0.png").write_bytes(b"broken")
    paths = [*sorted(photos.iterdir()), photos / "missing.png"]
    unusable: list[Path] = []

    source = cache(tmp_path, paths, CountingTower(), unusable)

    assert sorted(unusable) == [photos / "0.png", photos / "missing.png"]
    assert source(paths[1:7]).shape == (6, 9, 3)
    assert not any(record.levelno > logging.INFO for record in caplog.records)
    with pytest.raises(KeyError):
        source([photos / "0.png"])
