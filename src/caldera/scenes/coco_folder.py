"""COCO folders of synthetic scenes: rendered images, captions_*.json and instances_*.json."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

from caldera.files.atomic import atomic_folder, write_json
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes, render
from caldera.scenes.scene import OBJECT_KINDS, SIDE, Scene, Split, sample_scene

JPEG_QUALITY = 92


def encode_jpeg(scene: Scene) -> bytes:
    """Render a scene and encode it as in its file."""
    buffer = BytesIO()
    render(scene).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _sample_and_render(index: int, *, seed: int, split: Split) -> tuple[Scene, bytes]:
    scene = sample_scene(index, seed=seed, split=split, shapes=glyph_shapes())
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
    """Render `count` scenes into a COCO folder, atomically; the same seed gives the same bytes."""
    # Raises once, and here, if the glyphs are not installed.
    glyph_shapes()
    job = partial(_sample_and_render, seed=seed, split=split)
    scenes: list[Scene] = []
    with atomic_folder(folder) as new_folder, _worker_pool(workers) as pool:
        (new_folder / split).mkdir()
        for scene, data in pool.imap(job, range(count), chunksize=32):
            scenes.append(scene)
            (new_folder / split / _file_name(len(scenes))).write_bytes(data)
            on_image()
        _write_annotations(new_folder / "annotations", scenes, split, seed)


@contextmanager
def _worker_pool(workers: int) -> Iterator[Pool]:
    """Start processes that ignore Ctrl-C, which a terminal sends to all of them: this one ends them."""
    # A blocked signal stays blocked in a new process, from its first moment, and reaches this one afterwards.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool = get_context("spawn").Pool(workers)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    with pool:
        yield pool


def _file_name(number: int) -> str:
    return f"{number:06d}.jpg"


def _write_annotations(folder: Path, scenes: Sequence[Scene], split: Split, seed: int) -> None:
    """Write COCO's two annotation files."""
    images: list[dict[str, object]] = []
    captions: list[dict[str, object]] = []
    boxes: list[dict[str, object]] = []
    for number, scene in enumerate(scenes, start=1):
        name = _file_name(number)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for caption in captions_of(scene):
            captions.append({"id": len(captions) + 1, "image_id": number, "caption": caption})
        for group, item in scene.objects:
            entry = {
                "id": len(boxes) + 1,
                "image_id": number,
                "category_id": group.kind.category_id,
                "bbox": [item.left, item.top, item.width, item.height],
                "area": item.width * item.height,
                "iscrowd": 0,
            }
            boxes.append(entry)
    head = {
        "info": {
            "description": f"Drawn scenes, split {split}, seed {seed}",
            "contributor": "caldera; glyphs by OpenMoji (openmoji.org), CC BY-SA 4.0",
        },
        "images": images,
    }
    categories = [
        {"id": kind.category_id, "name": kind.name, "supercategory": kind.supercategory}
        for kind in OBJECT_KINDS.values()
    ]
    folder.mkdir()
    write_json(folder / f"captions_{split}.json", {**head, "annotations": captions})
    instances = {**head, "annotations": boxes, "categories": categories}
    write_json(folder / f"instances_{split}.json", instances)
