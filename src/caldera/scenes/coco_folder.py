"""Seeds in, a COCO folder out: drawn images with captions_*.json and instances_*.json beside them."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from caldera.files.atomic import atomic_folder, write_json
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import OBJECT_KINDS, SIDE, Scene, Split, sample_scene

JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class _RenderJob:
    """One scene to be drawn."""

    index: int
    seed: int
    split: Split


def encode_jpeg(scene: Scene) -> bytes:
    """Draw a scene and encode it as it stands in its file."""
    buffer = BytesIO()
    render(scene).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _render_job(order: _RenderJob) -> tuple[Scene, bytes]:
    scene = sample_scene(order.index, seed=order.seed, split=order.split, shapes=glyph_shapes())
    return scene, encode_jpeg(scene)


def write_scenes(
    folder: Path,
    split: Split,
    count: int,
    *,
    seed: int,
    workers: int = 2,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Draw `count` scenes into a COCO folder of their own, whole or not at all.

    Args:
        folder: Where the folder will stand; one that stands there is replaced.
        split: Which scenes: those to train on, or those kept for testing.
        count: How many.
        seed: The same seed gives the same bytes.
        workers: Processes that draw.
        tick: Called after each image.

    Raises:
        OutputError: It could not be written.
        UsageError: The glyphs are not installed.
    """
    glyph_shapes()  # fails here, and once, where the glyphs are missing
    entries = _CocoWriter()
    orders = (_RenderJob(index, seed, split) for index in range(count))
    with atomic_folder(folder) as fresh, get_context("spawn").Pool(workers) as pool:
        (fresh / split).mkdir()
        for number, (scene, data) in enumerate(
            pool.imap(_render_job, orders, chunksize=32), start=1
        ):
            name = f"{number:06d}.jpg"
            (fresh / split / name).write_bytes(data)
            entries.add(scene, number, name)
            tick()
        entries.write(fresh / "annotations", split, seed)


class _CocoWriter:
    """The lists of COCO's two annotation files."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._captions: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []

    def add(self, scene: Scene, number: int, name: str) -> None:
        """Enter one scene."""
        self._images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for caption in captions_of(scene):
            entry = {"id": len(self._captions) + 1, "image_id": number, "caption": caption}
            self._captions.append(entry)
        for group, thing in scene.things:
            entry = {
                "id": len(self._boxes) + 1,
                "image_id": number,
                "category_id": group.kind.category_id,
                "bbox": [thing.left, thing.top, thing.width, thing.height],
                "area": thing.width * thing.height,
                "iscrowd": 0,
            }
            self._boxes.append(entry)

    def write(self, folder: Path, split: str, seed: int) -> None:
        """Write both files."""
        folder.mkdir()
        head = {
            "info": {
                "description": f"Drawn scenes, split {split}, seed {seed}",
                "contributor": "caldera; glyphs by OpenMoji (openmoji.org), CC BY-SA 4.0",
            },
            "images": self._images,
        }
        categories = [
            {"id": kind.category_id, "name": kind.name, "supercategory": kind.supercategory}
            for kind in OBJECT_KINDS.values()
        ]
        write_json(folder / f"captions_{split}.json", {**head, "annotations": self._captions})
        boxes = {**head, "annotations": self._boxes, "categories": categories}
        write_json(folder / f"instances_{split}.json", boxes)
