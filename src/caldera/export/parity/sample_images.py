"""Images to compare implementations with: given files, or scenes drawn on the spot and some odd files beside them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from caldera.export.parity.compare import ParityCase
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import sample_scene

SCENES = 20
"""Drawn scenes in a comparison."""

_SEED = 20
"""Of the scenes; those of the demo have another."""

_ORIENTATION, _TURNED = 0x0112, 6
"""EXIF's tag for how an image is turned, and its value for a quarter to the right."""

QUESTIONS = (
    "What is in the picture?",
    "Describe the picture.",
    "How many things do you see?",
    "What is on the left?",
)


def given_images(paths: Sequence[Path]) -> list[ParityCase]:
    """Ask about a user's files, one question after the other."""
    return [
        ParityCase(path, QUESTIONS[number % len(QUESTIONS)]) for number, path in enumerate(paths)
    ]


def drawn_images(folder: Path) -> list[ParityCase]:
    """Draw scenes into a folder, as PNG, and odd files beside them: thin, wide, grey, transparent, turned, JPEG.

    Raises:
        UsageError: The glyphs that scenes are drawn with are not installed.
    """
    scenes = [
        render(sample_scene(number, seed=_SEED, split="held_out", shapes=glyph_shapes()))
        for number in range(SCENES)
    ]
    paths = []
    for number, scene in enumerate(scenes):
        paths.append(folder / f"scene-{number:02d}.png")
        scene.save(paths[-1])
    odd: list[ParityCase] = []
    for name, write in ODD.items():
        write(scenes[len(odd)], folder / name)
        odd.append(ParityCase(folder / name, QUESTIONS[0], informational=True))
    return given_images(paths) + odd


def _transparent(scene: Image.Image, path: Path) -> None:
    """Save a scene of which one half is see-through."""
    half = Image.linear_gradient("L").resize(scene.size)
    scene.putalpha(half)
    scene.save(path)


def _turned(scene: Image.Image, path: Path) -> None:
    """Save a scene lying on its side, with the note in its file that says so."""
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURNED
    scene.crop((0, 0, scene.width, scene.height // 2)).save(path, exif=exif, quality=95)


ODD: dict[str, Callable[[Image.Image, Path], None]] = {
    "thin.png": lambda scene, path: scene.resize((1, 1000)).save(path),
    "wide.png": lambda scene, path: scene.resize((331, 97)).save(path),
    "grey.png": lambda scene, path: scene.convert("L").save(path),
    "transparent.png": _transparent,
    "turned.jpg": _turned,
    "scene.jpg": lambda scene, path: scene.save(path, quality=90),
}
"""Odd files by name, and how each is made of a scene."""
