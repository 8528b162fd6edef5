"""COCO folders of synthetic scenes: rendered images, captions_*.json and instances_*.json."""

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
    """A scene to render."""

    index: int
    seed: int
    split: Split


def encode_jpeg(scene: Scene) -> bytes:
    """Render a scene and encode it as in its file."""
    buffer = BytesIO()
    render(scene).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _run_job(job: _RenderJob) -> tuple[Scene, bytes]:
    scene = sample_scene(job.index, seed=job.seed, split=job.split, shapes=glyph_shapes())
    return scene, encode_jpeg(scene)


def write_scenes(
    folder: Path,
    split: Split,
    count: int,
    *,
    seed: int,
    workers: int = 2,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Render `count` scenes into a COCO folder, atomically."""
    # Raises once, and here, if the glyphs are not installed.
    glyph_shapes()
    writer = _CocoWriter()
    jobs = (_RenderJob(index, seed, split) for index in range(count))
    with atomic_folder(folder) as partial, get_context("spawn").Pool(workers) as pool:
        (partial / split).mkdir()
        for number, (scene, data) in enumerate(pool.imap(_run_job, jobs, chunksize=32), start=1):
            name = f"{number:06d}.jpg"
            (partial / split / name).write_bytes(data)
            writer.add(scene, number, name)
            on_image()
        writer.write(partial / "annotations", split, seed)


class _CocoWriter:
    """Collects the entries of COCO's two annotation files."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._captions: list[dict[str, Any]] = []
        self._boxes: list[dict[str, Any]] = []

    def add(self, scene: Scene, number: int, name: str) -> None:
        """Add a scene."""
        self._images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for caption in captions_of(scene):
            entry = {"id": len(self._captions) + 1, "image_id": number, "caption": caption}
            self._captions.append(entry)
        for group, item in scene.objects:
            entry = {
                "id": len(self._boxes) + 1,
                "image_id": number,
                "category_id": group.kind.category_id,
                "bbox": [item.left, item.top, item.width, item.height],
                "area": item.width * item.height,
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
