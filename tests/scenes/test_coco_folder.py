"""Tests of COCO folders of scenes: the same bytes for the same seed, readable by `read_coco`, written atomically."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import read_coco
from caldera.files.skipped_items import SkippedItems
from caldera.scenes.captions import captions_of
from caldera.scenes.coco_folder import write_scenes
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, SIDE, sample_scene

COUNT = 37
"""More than one chunk of jobs, so that both processes have some."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render a folder of training scenes with two processes."""
    folder = tmp_path_factory.mktemp("rendered") / "scenes"
    calls: list[None] = []
    write_scenes(folder, "train", COUNT, seed=5, workers=2, on_image=lambda: calls.append(None))
    assert len(calls) == COUNT
    return folder


@pytest.fixture(scope="module")
def annotations(folder: Path) -> AnnotationSet:
    """Read the folder."""
    return read_coco(folder, SkippedItems())


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Whatever the number of processes and the earlier content; another seed gives other images."""
    again = tmp_path / "scenes"
    write_scenes(again, "train", 2, seed=6, workers=1)
    other = contents(again)
    write_scenes(again, "train", COUNT, seed=5, workers=1)
    assert contents(again) == contents(folder)
    assert len(contents(folder)) == COUNT + 2
    assert not set(other.values()) & set(contents(folder).values())


def test_the_reader_returns_every_scene(annotations: AnnotationSet, folder: Path) -> None:
    """Images are in order, with the captions, kinds and boxes of their scenes."""
    assert len(annotations.images) == COUNT
    for index, image in enumerate(annotations.images):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        assert image.path == folder / "train" / f"{index + 1:06d}.jpg"
        assert image.captions == captions_of(scene)
        assert [(instance.category, instance.is_crowd) for instance in image.instances] == [
            (group.kind.name, False) for group, _ in scene.objects
        ]
        for instance, (_, item) in zip(image.instances, scene.objects, strict=True):
            box = instance.box
            assert box == item.box
            assert 0 <= box.left < box.right <= 1
            assert 0 <= box.top < box.bottom <= 1


def test_images_show_the_scenes(annotations: AnnotationSet) -> None:
    """JPEG changes little, so each file contains its own scene."""
    for index, image in enumerate(annotations.images):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        with Image.open(image.path) as file:
            assert (file.format, file.mode, file.size) == ("JPEG", "RGB", (SIDE, SIDE))
            decoded = np.asarray(file).astype(float)
        assert np.abs(decoded - np.asarray(render(scene))).mean() < 4


def test_all_kinds_are_annotated_categories(annotations: AnnotationSet) -> None:
    """A kind without a box is not in the image."""
    assert annotations.categories == tuple(OBJECT_KINDS)
    assert all(
        sum(setting in caption.lower() for setting in BACKGROUNDS) <= 1
        for image in annotations.images
        for caption in image.captions
    )


def test_interrupted_rendering_leaves_nothing(tmp_path: Path) -> None:
    """An error leaves neither the folder nor temporary files."""

    def stop() -> None:
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match=r"^interrupted$"):
        write_scenes(tmp_path / "scenes", "held_out", 2, seed=5, workers=1, on_image=stop)
    assert list(tmp_path.iterdir()) == []
