"""A stage may show images in tiles, which LLaVA's own trainer never could: kept features, resuming, the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.model.lora import LoraConfig
from caldera.overrides import apply_overrides
from caldera.progress import NoProgress
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.stage import FINETUNE, Stage

STAGE = replace(
    FINETUNE,
    aspect="anyres",
    grid_pinpoints=("1x2", "2x1", "3x1"),
    learning_rate=3e-3,
    batch_size=3,
    epochs=2,
    validation_size=2,
    save_every=4,
    max_length=256,
)


def dialogues() -> list[Conversation]:
    """Return 21 dialogues about no, one or two images of different proportions."""
    told = []
    for number in range(21):
        shown = tuple(ImageRef(f"{(number + 3 * at) % 7}.png") for at in range(number % 3))
        turns = (Turn("user", (*shown, "what?")), Turn("assistant", ("a dog on the left",)))
        told.append(Conversation(f"r{number}", turns))
    return told


def run(
    assistant: LlavaBundle, photos: Path, out: Path, stage: Stage = STAGE
) -> tuple[LlavaBundle, list[float | None]]:
    """Run a stage; return its assistant and the validation losses before and after."""
    job = TrainingJob(
        stage=stage,
        assistant=assistant,
        data=TrainingData(conversations=dialogues(), images=photos),
        out=out,
        features=out.parent / "features",
        runtime=Runtime(DeviceConfig(torch.device("cpu"), torch.float32), NoProgress()),
        skipped=SkippedItems(),
    )
    trained, outcome = job.run()
    assert outcome is not None
    return trained, [outcome.first_validation_loss, outcome.last_validation_loss]


def test_a_stage_turns_to_tiles_and_writes_a_folder_of_llava_next(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """From images padded to squares on: it learns, the end of a row of tiles moves, transformers loads the result."""
    start = assemble(vision_folder, language_folder, aspect="pad", seed=3)
    fresh = with_image_aspect(
        assemble(vision_folder, language_folder, seed=3), "anyres", seed=STAGE.seed
    ).model.projector.image_newline
    assert fresh is not None

    trained, (before, after) = run(start, photos, tmp_path / "run")

    assert before is not None
    assert after is not None
    assert after < before - 0.3
    loaded = load_model_folder(tmp_path / "run" / "model")
    assert loaded.card == trained.card
    assert loaded.card.pinpoints == ((6, 12), (12, 6), (18, 6))
    assert loaded.processor == trained.processor
    newline = loaded.model.projector.image_newline
    assert newline is not None
    assert not torch.equal(newline, fresh)
    theirs: Any = LlavaNextForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(theirs.model.image_newline, newline)
    assert theirs.config.image_grid_pinpoints == [[12, 6], [6, 12], [6, 18]]


def test_kept_features_of_tiles_are_those_of_the_pixels(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Whether the frozen tower looks once or at every step, the losses agree to what bf16 keeps."""
    losses = [
        run(
            assemble(vision_folder, language_folder, seed=3),
            photos,
            tmp_path / str(keep) / "run",
            replace(STAGE, cache_features=keep, max_steps=3),
        )[1]
        for keep in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
    assert losses[0][0] != losses[0][1]


def test_an_end_of_a_row_that_stood_still_is_drawn_again_for_an_adapter(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Factors alone may learn while images turn to tiles; their adapter goes onto the base that knew no tiles."""
    save_model_folder(tmp_path / "base", assemble(vision_folder, language_folder, seed=3))
    lora = LoraConfig(rank=3, dropout=0.0, targets=("q_proj",))
    stage = replace(STAGE, trainable=("language",), lora=lora, max_steps=2)
    trained, _ = run(load_model_folder(tmp_path / "base"), photos, tmp_path / "run", stage)

    base = load_model_folder(tmp_path / "base")
    merged = merge_adapter(tmp_path / "run" / "adapter", base)

    for name, weight in trained.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name


def test_tiles_go_away_again(vision_folder: Path, language_folder: Path) -> None:
    """An assistant that is shown squares again has no end of a row, and no pinpoints."""
    tiled = assemble(vision_folder, language_folder, aspect="anyres", seed=3)
    assert len(tiled.card.pinpoints) == 5
    plain = with_image_aspect(tiled, "pad")
    assert plain.card.pinpoints == plain.processor.pinpoints == ()
    assert plain.model.projector.image_newline is None


def test_grids_that_nothing_would_use_are_refused() -> None:
    """They are the stage's own tiling, so a stage that leaves images as they are shown has none to choose."""
    with pytest.raises(
        UsageError, match="grid_pinpoints are 2x2, but aspect is pad; set aspect=anyres"
    ):
        replace(FINETUNE, aspect="pad", grid_pinpoints=("2x2",))
    assert apply_overrides(FINETUNE, ["aspect=anyres", "grid_pinpoints=2x2"]).grid_pinpoints == (
        "2x2",
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_select": "cls_patch"}, "supports patches only"),
        ({"pinpoints": ((6, 10),)}, r"\(6, 10\) does not divide into tiles of 6 x 6"),
    ],
)
def test_what_cannot_be_tiled_is_refused(
    vision_folder: Path, language_folder: Path, settings: dict[str, Any], message: str
) -> None:
    """A class token among the features has no place in a raster of tiles; nor has part of a tile."""
    with pytest.raises(UsageError, match=message):
        assemble(vision_folder, language_folder, aspect="anyres", **settings)
