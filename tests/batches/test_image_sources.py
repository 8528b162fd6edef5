"""Features are computed once, by one of the processes that need them, and verified before they are used."""

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches import image_sources
from caldera.batches.feature_store import FeatureLocks, FeatureStore
from caldera.batches.image_checks import broken_images
from caldera.batches.image_sources import (
    CachedFeatures,
    DecodedImages,
    FrozenTower,
    cache_features,
    raise_image_error,
)
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import ImageError, InputError, Interrupted, OutputError
from caldera.images.decoding import DEFAULT_DECODING
from caldera.images.processor import ImageProcessor
from caldera.interruption import deferred_signals
from caldera.progress import NoProgress

PROCESSOR = ImageProcessor(side=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class FakeTower:
    """Tower that records the number of views of each call; its features are the pixels, (views, 9, 3)."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels as patches."""
        self.sizes.append(len(pixels))
        return pixels.flatten(2).transpose(1, 2)


def cache(
    folder: Path, paths: list[Path], tower: FakeTower, processor: ImageProcessor = PROCESSOR
) -> CachedFeatures:
    """Cache features in `folder`."""
    return cache_features(
        FeatureStore(folder, "store"),
        paths,
        tower=FrozenTower(processor, tower, (9, 3)),
        progress=NoProgress(),
        on_error=raise_image_error,
    )


def expected(paths: list[Path], processor: ImageProcessor = PROCESSOR) -> Tensor:
    """Return the tower's features, (views, 9, 3)."""
    return FakeTower()(DecodedImages(processor)(paths)).bfloat16()


def test_the_size_of_new_features_is_logged(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The number of new images and their size are logged before; where none is new, nothing is."""
    caplog.set_level(logging.INFO)
    paths = sorted(photos.iterdir())
    cache(tmp_path / "cache", paths[:2], FakeTower())
    caplog.clear()

    cache(tmp_path / "cache", paths, FakeTower())
    assert "features of 5 images (5 views) need 0.0 MB in " in caplog.text
    caplog.clear()

    cache(tmp_path / "cache", paths, FakeTower())
    assert "features of" not in caplog.text


def test_a_disk_with_too_little_space_is_an_error_before(tmp_path: Path, photos: Path) -> None:
    """The message has the sizes and the alternatives; no image was encoded."""
    tower = FakeTower()
    frozen = FrozenTower(PROCESSOR, tower, (10**9, 10**9))
    with pytest.raises(
        OutputError,
        match=r"of 7 images \(7 views\) need 14,000,000,000\.0 GB in .*cache, where [\d,.]+ GB are free; .*"
        "cache_features=false",
    ):
        cache_features(
            FeatureStore(tmp_path / "cache", "store"),
            sorted(photos.iterdir()),
            tower=frozen,
            progress=NoProgress(),
            on_error=raise_image_error,
        )
    assert tower.sizes == []


def test_tiles_are_encoded_in_bounded_numbers(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views are counted, not images; each image gets its own features, in order, also together with others."""
    monkeypatch.setattr(image_sources, "ENCODE_BATCH", 5)
    tiled = replace(PROCESSOR, aspect="anyres", pinpoints=((3, 6), (6, 3), (9, 6)))
    paths, tower = sorted(photos.iterdir()), FakeTower()

    source = cache(tmp_path, paths, tower, tiled)

    views = [tiled.layouts([path])[0].views for path in paths]
    assert len({*views}) > 1
    assert sum(tower.sizes) == sum(views)
    assert max(tower.sizes) <= 5
    for images in ([paths[5], paths[0]], [paths[3]], [paths[0], paths[6], paths[0]]):
        assert torch.equal(source(images), expected(images, tiled))


def test_damaged_rows_are_computed_again(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit is detected at the first reading, repaired for this run and the next, and logged."""
    paths = sorted(photos.iterdir())
    cache(tmp_path, paths, FakeTower())
    content = bytearray((tmp_path / "store.bin").read_bytes())
    # In the row of the third image.
    content[2 * 54 + 7] ^= 1
    (tmp_path / "store.bin").write_bytes(content)

    tower = FakeTower()
    source = cache(tmp_path, paths, tower)
    assert torch.equal(source(paths[:2]), expected(paths[:2]))
    assert tower.sizes == []
    assert torch.equal(source(paths), expected(paths))
    assert torch.equal(source(paths), expected(paths))
    assert tower.sizes == [1]
    assert f"cached features of {paths[2]} are damaged in {tmp_path / 'store.bin'}" in caplog.text

    tower = FakeTower()
    assert torch.equal(cache(tmp_path, paths, tower)(paths), expected(paths))
    assert tower.sizes == [], "they were repaired on disk, too"


def test_damage_that_cannot_be_repaired_is_an_error(tmp_path: Path, photos: Path) -> None:
    """Where the image was removed, training stops rather than train on noise."""
    paths = sorted(photos.iterdir())
    source = cache(tmp_path, paths, FakeTower())
    with (tmp_path / "store.bin").open("r+b") as data:
        data.write(b"noise")
    paths[0].unlink()
    with pytest.raises(ImageError, match=r"0\.png does not exist"):
        source(paths)


def test_a_truncated_file_is_completed_again(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images after the truncation are encoded again, the others are not."""
    paths = sorted(photos.iterdir())
    cache(tmp_path, paths, FakeTower())
    os.truncate(tmp_path / "store.bin", 4 * 54 + 11)

    for number in range(2):
        tower = FakeTower()
        assert torch.equal(cache(tmp_path, paths, tower)(paths), expected(paths))
        assert sum(tower.sizes) == (0 if number else 3)
    assert "is truncated: 3 images will be encoded again" in caplog.text


def test_an_invalid_line_loses_its_image_only(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each line has the location of its own rows."""
    paths = sorted(photos.iterdir())
    cache(tmp_path, paths, FakeTower())
    lines = (tmp_path / "store.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"count"', '"co\\unt"')
    (tmp_path / "store.jsonl").write_text("".join(f"{line}\n" for line in lines))

    tower = FakeTower()
    assert torch.equal(cache(tmp_path, paths, tower)(paths), expected(paths))
    assert tower.sizes == [1]
    assert "store.jsonl has an invalid line" in caplog.text


def test_a_store_without_its_shape_is_rejected(tmp_path: Path, photos: Path) -> None:
    """The shape of rows is not guessed; the message names the files to remove."""
    cache(tmp_path, sorted(photos.iterdir()), FakeTower())
    lines = (tmp_path / "store.jsonl").read_text().splitlines()
    (tmp_path / "store.jsonl").write_text("".join(f"{line}\n" for line in lines[1:]))
    with pytest.raises(InputError, match=r"remove it and store\.bin, the features will be"):
        cache(tmp_path, sorted(photos.iterdir()), FakeTower())


BUILDER = """
import logging, sys
from pathlib import Path
from caldera.batches import image_sources
from tests.batches.test_image_sources import FakeTower, cache
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
image_sources.ENCODE_BATCH = 2
class Stopping(FakeTower):
    def __call__(self, pixels):
        if len(self.sizes) == int(sys.argv[3]):
            print("claimed", flush=True)
            sys.stdin.readline()
        return super().__call__(pixels)
tower = Stopping()
cache(Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), tower)
print("encoded", sum(tower.sizes), flush=True)
"""


def builder(folder: Path, photos: Path, stop_at: int) -> subprocess.Popen[str]:
    """Start a process that encodes two images per call and waits during one of the calls."""
    words = [sys.executable, "-c", BUILDER, str(folder), str(photos), str(stop_at)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str], start: str) -> str:
    """Read the output of a process until a line with this start; return the rest of the line."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line.removeprefix(start).strip()
    raise AssertionError(f"it ended without printing {start!r}")


@pytest.mark.parametrize("killed", [True, False])
def test_two_processes_share_the_work(tmp_path: Path, photos: Path, *, killed: bool) -> None:
    """The second encodes what the first has not started, waits for the rest, and encodes it if the first dies."""
    folder = tmp_path / "cache"
    with builder(folder, photos, stop_at=1) as first:
        # Two images are in the store, two are being encoded, three are not started.
        read_line(first, "claimed")
        with builder(folder, photos, stop_at=-1) as second:
            assert read_line(second, "waiting for") == "2 images that another process encodes"
            if killed:
                os.kill(first.pid, signal.SIGKILL)
            else:
                assert first.stdin is not None
                print(file=first.stdin, flush=True)
                assert read_line(first, "encoded") == "4"
            assert read_line(second, "encoded") == ("5" if killed else "3")
    assert second.returncode == 0

    tower, paths = FakeTower(), sorted(photos.iterdir())
    assert torch.equal(cache(folder, paths, tower)(paths), expected(paths))
    assert tower.sizes == []


def test_a_signal_ends_the_wait_for_another_process(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the other process hangs; what is in the store is counted."""
    paths = sorted(photos.iterdir())
    cache(tmp_path, paths[1:], FakeTower())
    monkeypatch.setattr(FeatureLocks, "try_acquire", lambda *_: False)

    def wait(_: float) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(Interrupted, match=r"the features of 6 of 7 are kept in .*store\.bin"):
        cache(tmp_path, paths, FakeTower())


def test_broken_images_are_found(photos: Path) -> None:
    """Every image is decoded to its end; a signal stops the check."""
    paths = sorted(photos.iterdir())
    paths[0].write_bytes(paths[0].read_bytes()[:-60])
    paths[1].unlink()
    runtime = Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress(), workers=2)
    errors = broken_images(paths, runtime, DEFAULT_DECODING)
    assert [*errors] == paths[:2]
    assert all(str(path) in str(error) for path, error in errors.items())
    with deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped while checking images"):
            broken_images(paths, runtime, DEFAULT_DECODING)
