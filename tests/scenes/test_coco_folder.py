"""A COCO folder of drawn scenes: the same bytes for the same seed, readable by our own reader, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import read_coco
from caldera.files.skipped import SkippedItems
from caldera.scenes.captions import captions_of
from caldera.scenes.coco_folder import write_scenes
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, SIDE, sample_scene

COUNT = 37
"""More than one chunk of work, so that two processes share it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of training scenes, drawn by two processes."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    ticks: list[None] = []
    write_scenes(folder, "train", COUNT, seed=5, workers=2, tick=lambda: ticks.append(None))
    assert len(ticks) == COUNT
    return folder


@pytest.fixture(scope="module")
def annotations(folder: Path) -> AnnotationSet:
    """What the reader makes of it."""
    return read_coco(folder, SkippedItems())


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes by its path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """However many processes draw, and whatever stood there before; another seed gives no image of it."""
    again = tmp_path / "scenes"
    write_scenes(again, "train", 2, seed=6, workers=1)
    other = contents(again)
    write_scenes(again, "train", COUNT, seed=5, workers=1)
    assert contents(again) == contents(folder)
    assert len(contents(folder)) == COUNT + 2
    assert not set(other.values()) & set(contents(folder).values())


def test_the_reader_finds_every_scene_as_it_was_drawn_up(
    annotations: AnnotationSet, folder: Path
) -> None:
    """Images in order, with the captions, kinds and boxes of their scenes."""
    assert len(annotations.images) == COUNT
    for index, image in enumerate(annotations.images):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        assert image.path == folder / "train" / f"{index + 1:06d}.jpg"
        assert image.captions == captions_of(scene)
        assert [(each.category, each.is_crowd) for each in image.instances] == [
            (group.kind.name, False) for group, _ in scene.things
        ]
        for each, (_, thing) in zip(image.instances, scene.things, strict=True):
            box = (each.box.left, each.box.top, each.box.right, each.box.bottom)
            assert box == (thing.box.left, thing.box.top, thing.box.right, thing.box.bottom)
            assert 0 <= each.box.left < each.box.right <= 1
            assert 0 <= each.box.top < each.box.bottom <= 1


def test_images_show_the_scenes(annotations: AnnotationSet) -> None:
    """What JPEG changes is small, so that boxes lie on the things of their own image."""
    for index, image in enumerate(annotations.images):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        with Image.open(image.path) as file:
            assert (file.format, file.mode, file.size) == ("JPEG", "RGB", (SIDE, SIDE))
            found = np.asarray(file).astype(float)
        assert np.abs(found - np.asarray(render(scene))).mean() < 4


def test_everything_that_can_be_drawn_was_looked_for(annotations: AnnotationSet) -> None:
    """A kind without a box is a kind that is not there."""
    assert annotations.categories == tuple(OBJECT_KINDS)
    assert all(
        sum(setting in caption.lower() for setting in BACKGROUNDS) <= 1
        for image in annotations.images
        for caption in image.captions
    )


def test_where_drawing_is_broken_off_nothing_appears(tmp_path: Path) -> None:
    """An error half-way leaves neither the folder nor remains of it."""

    def stop() -> None:
        raise RuntimeError("stopped by hand")

    with pytest.raises(RuntimeError, match=r"^stopped by hand$"):
        write_scenes(tmp_path / "scenes", "held_out", 2, seed=5, workers=1, tick=stop)
    assert list(tmp_path.iterdir()) == []
