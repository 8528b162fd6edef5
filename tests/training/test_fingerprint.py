"""A run's fingerprint changes with everything that decides its result and with nothing else; each is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from caldera.batches.samples import Sample
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.files.fingerprint import json_fingerprint
from caldera.files.skipped_items import SkippedItems
from caldera.images.anyres import SINGLE_VIEW
from caldera.images.decoding import DEFAULT_DECODING, DecodingConfig
from caldera.model.bundle import LlavaBundle
from caldera.model.lora_config import LoraConfig
from caldera.progress import NoProgress
from caldera.training.fingerprint import RunFingerprint
from caldera.training.hyperparameters import EXECUTION_SETTINGS, FINETUNE, Stage
from caldera.training.job import TrainingData, TrainingJob
from tests.training.jobs import FP32, dialogues
from tests.training.test_job import STAGE, job


def fingerprint(
    assistant: LlavaBundle,
    photos: Path,
    stage: Stage = FINETUNE,
    *,
    file: str = "1.png",
    compute: DeviceConfig = FP32,
    ids: tuple[int, ...] = (2, 3),
    decoding: DecodingConfig = DEFAULT_DECODING,
) -> RunFingerprint:
    """Return the fingerprint of a run on twenty samples about an image, the last two tokens of each as given."""
    samples = [
        Sample(f"r{n}", (n, *ids), (-100, *ids), (photos / file,), (SINGLE_VIEW,), (1,))
        for n in range(20)
    ]
    return RunFingerprint(stage, assistant, samples, photos, compute, decoding)


def test_a_moved_run_has_the_same_fingerprint(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The location of the folder of images does not count."""
    moved = shutil.copytree(photos, tmp_path / "moved")
    assert fingerprint(assistant, moved).digest == fingerprint(assistant, photos).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("aspect", "image_processor.aspect was square, is pad"),
        ("layer", "vision_feature_layer was -2, is -1"),
        ("select", "feature_select was patch, is cls_patch"),
        ("weights", "weights.language was "),
        ("previous", "previous_stage was None, is pretrain"),
        ("precision", "precision was float32, is bfloat16"),
        ("decoding", "decoding.max_pixels was 32000000, is 9"),
        ("path", "data: 20 records differ, the first 'r0'"),
        ("image", "data: 20 records differ, the first 'r0'"),
        ("tokens", "data: 20 records differ, the first 'r0'"),
    ],
)
def test_everything_that_decides_a_result_counts_and_is_named(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, change: str, message: str
) -> None:
    """Other preparation, features, weights, precision or records give another fingerprint, and the difference."""
    before = fingerprint(assistant, photos)
    before.write(tmp_path)
    model = assistant.model
    changes_by_name: dict[str, dict[str, Any]] = {
        "precision": {"compute": replace(FP32, dtype=torch.bfloat16)},
        "decoding": {"decoding": replace(DEFAULT_DECODING, max_pixels=9)},
        "path": {"file": "same bytes.png"},
        "tokens": {"ids": (2, 4)},
    }
    match change:
        case "aspect":
            processor = replace(assistant.processor, aspect="pad")
            assistant = replace(assistant, processor=processor)
        case "layer":
            model.vision.select_layer = -1
        case "select":
            model.vision.select = "cls_patch"
        case "weights":
            with torch.no_grad():
                model.embedding_weight[0, 0] += 1e-3
        case "previous":
            card = assistant.card.model_copy(update={"stage": "pretrain"})
            assistant = replace(assistant, card=card)
        case "path":
            shutil.copy(photos / "1.png", photos / "same bytes.png")
        case "image":
            Image.new("RGB", (30, 30)).save(photos / "1.png")

    after = fingerprint(assistant, photos, **changes_by_name.get(change, {}))

    assert after.digest != before.digest
    assert after.changes(tmp_path, before.digest).startswith(message)
    assert ";" not in after.changes(tmp_path, before.digest)


OTHER_SETTINGS: dict[str, Any] = {
    "name": "other",
    "trainable": ("projector",),
    "template": "plain",
    "learning_rate": 1e-4,
    "projector_learning_rate": 1e-4,
    "vision_learning_rate": 1e-4,
    "lora": LoraConfig(rank=8),
    "batch_size": 3,
    "batch_tokens": 500,
    "loss_batch_size": 2,
    "share_prefixes": False,
    "epochs": 2,
    "max_steps": 9,
    "warmup_ratio": 0.1,
    "weight_decay": 0.1,
    "betas": (0.9, 0.98),
    "max_grad_norm": 0.5,
    "aspect": "pad",
    "grid_pinpoints": ("2x2",),
    "anyres_max": 9,
    "validation_size": 1,
    "calibrate_projector": True,
    "seed": 43,
    "micro_batch_size": 2,
    "micro_batch_tokens": 100,
    "gradient_checkpointing": True,
    "max_length": 100,
    "eval_every": 3,
    "save_every": 3,
    "save_every_minutes": None,
    "cache_features": False,
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_a_setting_counts_and_is_named_unless_it_changes_no_step(
    assistant: LlavaBundle, photos: Path, tmp_path: Path, name: str
) -> None:
    """Every setting of a stage is one or the other."""
    assert OTHER_SETTINGS.keys() == {field.name for field in fields(Stage)}
    stage = (
        replace(FINETUNE, aspect="anyres") if name in ("grid_pinpoints", "anyres_max") else FINETUNE
    )
    before = fingerprint(assistant, photos, stage)
    before.write(tmp_path)

    after = fingerprint(assistant, photos, replace(stage, **{name: OTHER_SETTINGS[name]}))

    changes = after.changes(tmp_path, before.digest)
    assert (after.digest == before.digest) == (changes == "") == (name in EXECUTION_SETTINGS)
    assert changes == "" or changes.startswith(f"{name} was ")


def test_the_validation_split_counts_by_its_size(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """It is at most a tenth of all records, 2 of 20, so larger limits are the same; smaller ones are named."""
    before = fingerprint(assistant, photos, replace(FINETUNE, validation_size=3))
    before.write(tmp_path)
    larger = fingerprint(assistant, photos, replace(FINETUNE, validation_size=99))
    smaller = fingerprint(assistant, photos, replace(FINETUNE, validation_size=0))
    assert larger.digest == before.digest
    assert smaller.changes(tmp_path, before.digest) == "validation_size was 3, is 0"


def test_a_run_that_was_split_by_the_former_rule_is_not_resumed(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """Where chains of images leave few samples, whole images are held out now, and earlier runs have no such entry."""
    for number in range(27):
        shutil.copy(photos / "1.png", tmp_path / f"{number}.png")
    chain = [(f"{n // 4}.png", f"{n // 4 + 1}.png") for n in range(100)]
    samples = [
        Sample(
            f"r{n}",
            (1, 2),
            (1, 2),
            tuple(tmp_path / name for name in names),
            (SINGLE_VIEW,) * len(names),
            (0,) * len(names),
        )
        for n, names in enumerate([*chain, ("26.png",)])
    ]
    stage = replace(FINETUNE, validation_size=10)
    run = RunFingerprint(stage, assistant, samples, tmp_path, FP32, DEFAULT_DECODING)
    run.write(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content.pop("validation_rule") == "whole images"
    (tmp_path / "run.json").write_text(json.dumps(content))
    digest = json_fingerprint({name: content[name] for name in content if name != "limits"})
    assert run.changes(tmp_path, digest) == "validation_rule was not set, is whole images"


def test_a_difference_between_unknown_runs_is_still_one(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """Without `run.json` the settings are compared with `stage.json`, and what is not stored is summarized."""
    before = fingerprint(assistant, photos)
    before.write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    rate = fingerprint(assistant, photos, replace(FINETUNE, learning_rate=1e-4))
    tokens = fingerprint(assistant, photos, ids=(2, 4))
    assert rate.changes(tmp_path, before.digest) == "learning_rate was 2e-05, is 0.0001"
    assert tokens.changes(tmp_path, before.digest) == "data, initial weights or precision"


Change = Callable[[list[Any]], list[Any]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [*data[:7], replace(data[7], id="x"), *data[8:]], "1 record differs, the first 'x'"),
        (lambda data: data[1:], "1 record differs, the first 'r0' (40 records were, 39 are)"),
        (lambda data: [*dialogues(43)], "3 records differ, the first 'r40' (40 records were, 43 are)"),
        (lambda data: data[::-1], "the same records in another order"),
        (lambda data: data + data[:2], "2 records differ, the first 'r0' (40 records were, 42 are)"),
    ],
    ids=["changed", "removed", "added", "reordered", "repeated"],
)  # fmt: skip
def test_a_run_is_not_resumed_with_other_data(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
    change: Change,
    message: str,
) -> None:
    """The number of different records and the first of them are named (F9)."""
    out = tmp_path / "run"
    interrupt(job(start(), photos, out))
    data = TrainingData(conversations=change(dialogues(40)), images=photos)

    with pytest.raises(UsageError) as caught:
        job(start(), photos, out, data=data, resume=True).run()

    assert str(caught.value) == (
        f"{out} holds a run made with other data, settings or weights: data: {message}; resume it with the former "
        "ones, or choose another --out"
    )


def test_a_run_is_resumed_with_all_changes_that_change_no_step(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Memory, validation and checkpoint settings, workers and the allowed fraction of bad records may differ (F9)."""
    uninterrupted, _ = job(start(), photos, tmp_path / "a").run()
    interrupt(job(start(), photos, tmp_path / "b"))
    stage = replace(STAGE, **{name: OTHER_SETTINGS[name] for name in EXECUTION_SETTINGS})
    stage = replace(stage, max_length=300)
    runtime = Runtime(FP32, NoProgress(), workers=1)

    resumed, _ = job(
        start(),
        photos,
        tmp_path / "b",
        stage,
        resume=True,
        runtime=runtime,
        skipped=SkippedItems(0.1),
    ).run()

    for name, weight in uninterrupted.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=1e-3, atol=1e-5)
    assert resumed.card.recipe["finetune"]["micro_batch_size"] == 2


def test_records_of_another_length_limit_name_it(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Where `max_length` excludes records, the message says that it was changed."""
    interrupt(job(start(), photos, tmp_path / "run"))
    lengths = sorted({sample.length for sample in job(start(), photos, tmp_path)._encode(start())})
    short = replace(STAGE, max_length=lengths[-2])
    with pytest.raises(
        UsageError, match=rf"records differ.*\(max_length was 256, is {lengths[-2]}\)"
    ):
        job(start(), photos, tmp_path / "run", short, resume=True, skipped=SkippedItems(0.9)).run()


def test_an_image_that_became_usable_is_not_added_to_a_run(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[[TrainingJob], None],
) -> None:
    """Its records were skipped, and with them every step would be another (F9)."""
    content = (photos / "0.png").read_bytes()
    # The header stays, so only the decoder notices.
    (photos / "0.png").write_bytes(content[:60] + bytes(len(content) - 60))
    interrupt(job(start(), photos, tmp_path / "run", skipped=SkippedItems(0.3)))
    (photos / "0.png").write_bytes(content)
    with pytest.raises(
        UsageError,
        match=r"was trained on \d+ records, but the images of \d+ are usable now; restore",
    ):
        job(start(), photos, tmp_path / "run", resume=True).run()
