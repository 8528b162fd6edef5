"""How many scenes and which dialogues in, images with annotations and data files out: each made once."""

from pathlib import Path

from caldera.annotations.annotated_image import AnnotationSet
from caldera.annotations.coco import read_coco
from caldera.conversation import write_conversations
from caldera.instructions.scripted import ScriptedTeacher
from caldera.instructions.writing import count_dialogues, generate_dialogues
from caldera.progress import Progress
from caldera.recipes.scene_recipe import InstructionMix, SceneCounts
from caldera.scenes.folder import write_scenes
from caldera.scenes.kinds import Split
from caldera.skips import SkippedItems


def draw(scenes: SceneCounts, split: Split, folder: Path, progress: Progress) -> AnnotationSet:
    """Draw a split's scenes, unless they are there, and read them back as any COCO folder is read."""
    count = scenes.train if split == "train" else scenes.held_out
    if not folder.exists():
        with progress.task(f"drawing {split} scenes", count) as tick:
            write_scenes(folder, split, count, seed=scenes.seed, tick=tick)
    return read_coco(folder, SkippedItems(), split)


def write_data(
    file: Path, mix: InstructionMix, annotations: AnnotationSet, *, seed: int, progress: Progress
) -> None:
    """Have the scripted teacher write a data set, unless it is there."""
    if file.exists():
        return
    teacher = ScriptedTeacher(annotations.categories, seed)
    total = count_dialogues(annotations.images, mix.shares, seed).total()
    with progress.task(f"writing {file.stem} data", total) as tick:
        written = generate_dialogues(
            annotations, teacher, mix.shares, seed=seed, beside=file.parent, tick=tick
        )
    write_conversations(file, written.conversations)
