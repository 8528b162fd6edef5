"""Images for a comparison: a user's files, or drawn scenes and files with unusual properties."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from caldera.export.parity.compare import ParityCase
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import sample_scene

NUM_SCENES = 20
"""Drawn scenes in a comparison."""

_SEED = 20
"""Seed of the scenes; the demo uses another."""

_ORIENTATION, _ROTATED_RIGHT = 0x0112, 6
"""EXIF tag of an image's orientation, and its value for a quarter turn to the right."""

QUESTIONS = (
    "What is in the picture?",
    "Describe the picture.",
    "How many things do you see?",
    "What is on the left?",
)


def build_cases(paths: Sequence[Path]) -> list[ParityCase]:
    """Return cases about files, with the questions in turn."""
    return [
        ParityCase(path, QUESTIONS[number % len(QUESTIONS)]) for number, path in enumerate(paths)
    ]


def draw_cases(folder: Path) -> list[ParityCase]:
    """Draw scenes into a folder, as PNG, and unusual files: thin, wide, grayscale, transparent, rotated, JPEG."""
    scenes = [
        render(sample_scene(number, seed=_SEED, split="held_out", shapes=glyph_shapes()))
        for number in range(NUM_SCENES)
    ]
    paths = []
    for number, scene in enumerate(scenes):
        paths.append(folder / f"scene-{number:02d}.png")
        scene.save(paths[-1])
    unusual: list[ParityCase] = []
    for scene, (name, write) in zip(scenes, UNUSUAL_FILES.items(), strict=False):
        write(scene, folder / name)
        unusual.append(ParityCase(folder / name, QUESTIONS[0], informational=True))
    return build_cases(paths) + unusual


def _save_transparent(scene: Image.Image, path: Path) -> None:
    """Save a scene with a gradient of opacity."""
    scene.putalpha(Image.linear_gradient("L").resize(scene.size))
    scene.save(path)


def _save_rotated(scene: Image.Image, path: Path) -> None:
    """Save a scene on its side, with the orientation in its EXIF data."""
    exif = Image.Exif()
    exif[_ORIENTATION] = _ROTATED_RIGHT
    scene.crop((0, 0, scene.width, scene.height // 2)).save(path, exif=exif, quality=95)


UNUSUAL_FILES: dict[str, Callable[[Image.Image, Path], None]] = {
    "thin.png": lambda scene, path: scene.resize((1, 1000)).save(path),
    "wide.png": lambda scene, path: scene.resize((331, 97)).save(path),
    "grey.png": lambda scene, path: scene.convert("L").save(path),
    "transparent.png": _save_transparent,
    "turned.jpg": _save_rotated,
    "scene.jpg": lambda scene, path: scene.save(path, quality=90),
}
"""Functions that write unusual files, by name."""
