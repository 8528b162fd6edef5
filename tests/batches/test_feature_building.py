"""Features are announced, computed by as many processes as ask for them but once, and checked before they are used."""

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches import image_sources
from caldera.batches.feature_store import FeatureStore
from caldera.batches.image_sources import CachedFeatures, DecodedImages, FrozenTower, cache_features
from caldera.errors import ImageError, InputError, OutputError
from caldera.images.processor import ImageProcessor
from caldera.progress import NoProgress

PROCESSOR = ImageProcessor(side=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Looks:
    """A stand-in tower that notes how many views it gets at once: features are the pixels, (views, 9, 3)."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels as patches."""
        self.sizes.append(len(pixels))
        return pixels.flatten(2).transpose(1, 2)


def stop(path: Path, fault: InputError) -> None:
    """Let no fault pass."""
    raise fault


def keep(
    folder: Path, paths: list[Path], looks: Looks, processor: ImageProcessor = PROCESSOR
) -> CachedFeatures:
    """Keep features in `folder`."""
    return cache_features(
        FeatureStore(folder, "store"),
        paths,
        tower=FrozenTower(processor, looks, (9, 3)),
        progress=NoProgress(),
        on_error=stop,
    )


def expected(paths: list[Path], processor: ImageProcessor = PROCESSOR) -> Tensor:
    """Return what the tower gives, (views, 9, 3)."""
    return Looks()(DecodedImages(processor)(paths)).bfloat16()


def test_their_size_is_announced(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """How many images are new and what they take is said before; where none is new, nothing is."""
    caplog.set_level(logging.INFO)
    paths = sorted(photos.iterdir())
    keep(tmp_path / "kept", paths[:2], Looks())
    caplog.clear()

    keep(tmp_path / "kept", paths, Looks())
    assert "features of 5 images (5 views) need 0.0 MB in " in caplog.text
    caplog.clear()

    keep(tmp_path / "kept", paths, Looks())
    assert "features of" not in caplog.text


def test_a_disk_with_too_little_room_is_said_before(tmp_path: Path, photos: Path) -> None:
    """The figures and the way out stand in the message; no image was looked at."""
    looks = Looks()
    tower = FrozenTower(PROCESSOR, looks, (10**9, 10**9))
    with pytest.raises(
        OutputError,
        match=r"of 7 images \(7 views\) need 14,000,000,000\.0 GB in .*kept, where [\d,.]+ GB are free; .*"
        "cache_features=false",
    ):
        cache_features(
            FeatureStore(tmp_path / "kept", "store"),
            sorted(photos.iterdir()),
            tower=tower,
            progress=NoProgress(),
            on_error=stop,
        )
    assert looks.sizes == []


def test_tiles_go_through_the_tower_in_bounded_numbers(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views are counted, not images; each image gets back its own, in order, also beside others."""
    monkeypatch.setattr(image_sources, "ENCODE_BATCH", 5)
    tiled = replace(PROCESSOR, aspect="anyres", pinpoints=((3, 6), (6, 3), (9, 6)))
    paths, looks = sorted(photos.iterdir()), Looks()

    source = keep(tmp_path, paths, looks, tiled)

    views = [tiled.layout(path).views for path in paths]
    assert len({*views}) > 1
    assert sum(looks.sizes) == sum(views)
    assert max(looks.sizes) <= 5
    for asked in ([paths[5], paths[0]], [paths[3]], [paths[0], paths[6], paths[0]]):
        assert torch.equal(source(asked), expected(asked, tiled))


def test_damaged_rows_are_computed_again(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit is noticed at the first reading, mended for this run and the next, and said."""
    paths = sorted(photos.iterdir())
    keep(tmp_path, paths, Looks())
    content = bytearray((tmp_path / "store.bin").read_bytes())
    content[2 * 54 + 7] ^= 1  # in the row of the third image
    (tmp_path / "store.bin").write_bytes(content)

    looks = Looks()
    source = keep(tmp_path, paths, looks)
    assert torch.equal(source(paths[:2]), expected(paths[:2]))
    assert looks.sizes == []
    assert torch.equal(source(paths), expected(paths))
    assert torch.equal(source(paths), expected(paths))
    assert looks.sizes == [1]
    assert f"cached features of {paths[2]} are damaged in {tmp_path / 'store.bin'}" in caplog.text

    looks = Looks()
    assert torch.equal(keep(tmp_path, paths, looks)(paths), expected(paths))
    assert looks.sizes == [], "they were mended on disk, too"


def test_damage_that_cannot_be_mended_is_an_error(tmp_path: Path, photos: Path) -> None:
    """Where the image is gone by then, training stops rather than learn from noise."""
    paths = sorted(photos.iterdir())
    source = keep(tmp_path, paths, Looks())
    with (tmp_path / "store.bin").open("r+b") as data:
        data.write(b"noise")
    paths[0].unlink()
    with pytest.raises(ImageError, match=r"0\.png does not exist"):
        source(paths)


def test_a_file_that_was_cut_is_filled_again(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Images behind the cut are looked at again, the others are not."""
    paths = sorted(photos.iterdir())
    keep(tmp_path, paths, Looks())
    os.truncate(tmp_path / "store.bin", 4 * 54 + 11)

    for number in range(2):
        looks = Looks()
        assert torch.equal(keep(tmp_path, paths, looks)(paths), expected(paths))
        assert sum(looks.sizes) == (0 if number else 3)
    assert "is truncated: 3 images will be encoded again" in caplog.text


def test_a_broken_line_costs_its_image_only(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Other lines say themselves where their rows are."""
    paths = sorted(photos.iterdir())
    keep(tmp_path, paths, Looks())
    lines = (tmp_path / "store.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace('"count"', '"co\\unt"')
    (tmp_path / "store.jsonl").write_text("".join(f"{line}\n" for line in lines))

    looks = Looks()
    assert torch.equal(keep(tmp_path, paths, looks)(paths), expected(paths))
    assert looks.sizes == [1]
    assert "store.jsonl has an invalid line" in caplog.text


def test_a_store_without_its_shape_is_refused(tmp_path: Path, photos: Path) -> None:
    """Rows of unknown shape are not guessed at; the message says what to remove."""
    keep(tmp_path, sorted(photos.iterdir()), Looks())
    lines = (tmp_path / "store.jsonl").read_text().splitlines()
    (tmp_path / "store.jsonl").write_text("".join(f"{line}\n" for line in lines[1:]))
    with pytest.raises(InputError, match=r"remove it and store\.bin, the features will be"):
        keep(tmp_path, sorted(photos.iterdir()), Looks())


BUILDER = """
import logging, sys
from pathlib import Path
from caldera.batches import image_sources
from tests.batches.test_feature_building import Looks, keep
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
image_sources.ENCODE_BATCH = 2
class Stopping(Looks):
    def __call__(self, pixels):
        if len(self.sizes) == int(sys.argv[3]):
            print("claimed", flush=True)
            sys.stdin.readline()
        return super().__call__(pixels)
looks = Stopping()
keep(Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), looks)
print("looked at", sum(looks.sizes), flush=True)
"""


def builder(folder: Path, photos: Path, stop_at: int) -> subprocess.Popen[str]:
    """Start a process that looks at two images at a time and waits with those of one of its looks in hand."""
    words = [sys.executable, "-c", BUILDER, str(folder), str(photos), str(stop_at)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def told(process: subprocess.Popen[str], beginning: str) -> str:
    """Read what a process says until a line begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return line.removeprefix(beginning).strip()
    raise AssertionError(f"it ended without saying {beginning!r}")


@pytest.mark.parametrize("killed", [True, False])
def test_two_processes_share_the_work(tmp_path: Path, photos: Path, *, killed: bool) -> None:
    """The second does what the first has not begun, says that it waits for the rest, and does it if the first dies."""
    kept = tmp_path / "kept"
    with builder(kept, photos, stop_at=1) as first:
        told(first, "claimed")  # two are in the store, two in hand, three not begun
        with builder(kept, photos, stop_at=-1) as second:
            assert told(second, "waiting for") == "2 images that another process encodes"
            if killed:
                os.kill(first.pid, signal.SIGKILL)
            else:
                assert first.stdin is not None
                print(file=first.stdin, flush=True)
                assert told(first, "looked at") == "4"
            assert told(second, "looked at") == ("5" if killed else "3")
    assert second.returncode == 0

    looks, paths = Looks(), sorted(photos.iterdir())
    assert torch.equal(keep(kept, paths, looks)(paths), expected(paths))
    assert looks.sizes == []
