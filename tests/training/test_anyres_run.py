"""Training with image tiles (anyres), which LLaVA's own trainer does not support: features, adapters, the folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

from caldera.errors import UsageError
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.model.lora_config import LoraConfig
from caldera.overrides import apply_overrides
from caldera.training.hyperparameters import FINETUNE, Stage
from caldera.training.job import TrainingData
from tests.training.jobs import dialogues, make_job

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


def run(
    assistant: LlavaBundle, photos: Path, out: Path, stage: Stage = STAGE
) -> tuple[LlavaBundle, list[float | None]]:
    """Run a stage; return the trained model and the validation losses before and after."""
    data = TrainingData(conversations=dialogues(21), images=photos)
    trained, result = make_job(assistant, photos, out, stage, data=data).run()
    assert result is not None
    return trained, [result.first_validation_loss, result.last_validation_loss]


def test_a_stage_with_tiles_writes_a_folder_of_llava_next(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """From a model of padded images: the loss falls, the newline embedding is trained, transformers loads it."""
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
    loaded_by_transformers: Any = LlavaNextForConditionalGeneration.from_pretrained(
        tmp_path / "run" / "model"
    )
    assert torch.equal(loaded_by_transformers.model.image_newline, newline)
    assert loaded_by_transformers.config.image_grid_pinpoints == [[12, 6], [6, 12], [6, 18]]


def test_cached_features_of_tiles_are_those_of_the_pixels(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Whether the frozen tower encodes an image once or at every step, the losses agree to bf16 precision."""
    losses = [
        run(
            assemble(vision_folder, language_folder, seed=3),
            photos,
            tmp_path / str(cache) / "run",
            replace(STAGE, cache_features=cache, max_steps=3),
        )[1]
        for cache in (True, False)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)
    assert losses[0][0] != losses[0][1]


def test_a_frozen_newline_embedding_is_restored_for_an_adapter(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """LoRA alone may be trained when tiles are introduced; the adapter fits the base model without tiles."""
    save_model_folder(tmp_path / "base", assemble(vision_folder, language_folder, seed=3))
    lora = LoraConfig(rank=3, dropout=0.0, targets=("q_proj",))
    stage = replace(STAGE, trainable=("language",), lora=lora, max_steps=2)
    trained, _ = run(load_model_folder(tmp_path / "base"), photos, tmp_path / "run", stage)

    base = load_model_folder(tmp_path / "base")
    merged = merge_adapter(tmp_path / "run" / "adapter", base)

    for name, weight in trained.model.state_dict().items():
        assert torch.equal(merged.model.state_dict()[name], weight), name


def test_tiles_can_be_removed(vision_folder: Path, language_folder: Path) -> None:
    """A model set back to padded images has no newline embedding and no pinpoints."""
    tiled = assemble(vision_folder, language_folder, aspect="anyres", seed=3)
    assert len(tiled.card.pinpoints) == 5
    plain = with_image_aspect(tiled, "pad")
    assert plain.card.pinpoints == plain.processor.pinpoints == ()
    assert plain.model.projector.image_newline is None


def test_unused_grids_are_rejected() -> None:
    """They define the tiles of a stage, so a stage without `anyres` has none to choose from."""
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
def test_invalid_tiles_are_rejected(
    vision_folder: Path, language_folder: Path, settings: dict[str, Any], message: str
) -> None:
    """A class token among the features has no position in a grid of tiles, and tiles are not divided."""
    with pytest.raises(UsageError, match=message):
        assemble(vision_folder, language_folder, aspect="anyres", **settings)
