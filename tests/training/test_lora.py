"""Training with LoRA: the weights that change, the files that are written, and resuming."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches.samples import Sample
from caldera.errors import UsageError
from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import add_lora, linear_layers, lora_parameters
from caldera.model.lora_config import LoraConfig
from caldera.overrides import apply_overrides
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.hyperparameters import FINETUNE, FINETUNE_LORA, Stage
from caldera.training.job import TrainingJob
from caldera.training.metrics_log import read_metrics
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import evaluate_loss, training_step
from tests.laying import batch_of
from tests.training.jobs import FP32, build_samples, dialogues, make_job

STAGE = replace(
    FINETUNE_LORA,
    learning_rate=1e-2,
    projector_learning_rate=3e-3,
    lora=LoraConfig(rank=3, alpha=6.0, dropout=0.2),
    batch_size=4,
    validation_size=4,
    eval_every=5,
    save_every=3,
    max_length=256,
)


def job(assistant: LlavaBundle, photos: Path, out: Path, **changes: object) -> TrainingJob:
    """Return a job on forty dialogues."""
    return make_job(assistant, photos, out, **{"stage": STAGE, **changes})  # type: ignore[arg-type]


def samples_of(assistant: LlavaBundle, photos: Path) -> list[Sample]:
    """Return five samples."""
    return build_samples(assistant, dialogues(5), photos)


def weights_of(assistant: LlavaBundle) -> dict[str, Tensor]:
    """Return a copy of every weight."""
    return {name: weight.clone() for name, weight in assistant.model.state_dict().items()}


def add_lora_and_freeze(assistant: LlavaBundle, stage: Stage = STAGE) -> torch.optim.AdamW:
    """Add LoRA to a model, freeze the rest, and return the optimizer."""
    assert stage.lora
    language = assistant.model.language
    add_lora(language, linear_layers(language), stage.lora, seed=stage.seed)
    set_trainable(assistant.model, stage.trainable)
    return build_optimizer(assistant.model, stage)


def test_only_lora_and_projector_change(assistant: LlavaBundle, photos: Path) -> None:
    """After a step each LoRA weight and the projector have changed; all others are equal bit for bit."""
    optimizer = add_lora_and_freeze(assistant)
    lora_weights = {id(weight) for weight in lora_parameters(assistant.model)}
    model = assistant.model.train()
    # The first step changes `up` alone: while it is zero, `down` has no gradient.
    for _ in range(2):
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        samples = samples_of(assistant, photos)
        batch = batch_of(assistant, samples)
        training_step(model, [batch], optimizer, max_grad_norm=1.0, compute=FP32)
    parameters = dict(model.named_parameters())
    changed = {name for name in parameters if not torch.equal(parameters[name], before[name])}
    expected = {
        name
        for name, weight in parameters.items()
        if id(weight) in lora_weights or name.startswith("projector.")
    }
    assert changed == expected
    assert len(expected) == 2 * 14 + 4


def test_report_and_optimizer_count_the_lora_weights(assistant: LlavaBundle) -> None:
    """Frozen weights are counted but not trainable; LoRA has the learning rate of the stage, the projector its own."""
    stage = replace(STAGE, trainable=("vision", *STAGE.trainable), vision_learning_rate=5e-4)
    optimizer = add_lora_and_freeze(assistant, stage)
    model = assistant.model
    reports = {report.part: report for report in set_trainable(model, stage.trainable)}
    num_lora = sum(weight.numel() for weight in lora_parameters(model))
    assert reports["language"].trainable == num_lora < reports["language"].parameters
    sizes: dict[float, int] = {}
    for group in optimizer.param_groups:
        count = sum(weight.numel() for weight in group["params"])
        sizes[group["base_lr"]] = sizes.get(group["base_lr"], 0) + count
    assert sizes == {
        1e-2: num_lora,
        3e-3: reports["projector"].parameters,
        5e-4: reports["vision"].parameters,
    }


def test_validation_has_no_lora_dropout(assistant: LlavaBundle, photos: Path) -> None:
    """The validation loss is the same each time, though in training it is not."""
    add_lora_and_freeze(assistant)
    model = assistant.model.train()
    with torch.no_grad():
        for weight in lora_parameters(model):
            weight.add_(0.3)
    samples = samples_of(assistant, photos)
    batch = batch_of(assistant, samples)
    assert evaluate_loss(model, [batch], FP32) == evaluate_loss(model, [batch], FP32)
    assert model(batch).mean != model(batch).mean


def test_a_run_writes_an_adapter_and_the_merged_model(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """The loss falls; adapter and base give the model folder bit for bit; embeddings, norms and head are the base's."""
    save_model_folder(tmp_path / "base", assistant)
    base = weights_of(assistant)
    layers = {f"language.{layer}.weight" for layer in linear_layers(assistant.model.language)}

    trained, result = job(assistant, photos, tmp_path / "run").run()

    assert result is not None
    assert result.last_validation_loss is not None
    assert result.first_validation_loss is not None
    assert result.last_validation_loss < result.first_validation_loss - 0.2
    model = load_model_folder(tmp_path / "run" / "model")
    assert model.card.recipe["finetune"]["lora"]["rank"] == 3
    merged = merge_adapter(tmp_path / "run" / "adapter", load_model_folder(tmp_path / "base"))
    assert merged.card == model.card
    changed = set()
    for name, weight in weights_of(model).items():
        assert torch.equal(trained.model.state_dict()[name], weight), name
        assert torch.equal(merged.model.state_dict()[name], weight), name
        if not torch.equal(weight, base[name]):
            changed.add(name)
    assert changed == layers | {name for name in base if name.startswith("projector.")}


def test_an_interrupted_run_resumes_bit_for_bit(
    start: Callable[[], LlavaBundle],
    photos: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
) -> None:
    """Interrupted after a checkpoint and resumed: weights, losses and adapter of an uninterrupted run."""
    uninterrupted, _ = job(start(), photos, tmp_path / "a").run()
    interrupt(job(start(), photos, tmp_path / "b"), step=5)
    checkpoint = latest_checkpoint(tmp_path / "b" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert not [name for name in checkpoint.tensors if name.endswith("q_proj.weight")]

    resumed, _ = job(start(), photos, tmp_path / "b", resume=True).run()

    for name, weight in uninterrupted.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    losses = [
        [event.get("loss") for event in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("a", "b")
    ]
    assert losses[0] == losses[1]
    for file in (tmp_path / "a" / "adapter").iterdir():
        assert (tmp_path / "b" / "adapter" / file.name).read_bytes() == file.read_bytes()


def test_another_rank_is_another_run(assistant: LlavaBundle, photos: Path, tmp_path: Path) -> None:
    """A finished run of another rank is not returned as the result of this one."""
    save_model_folder(tmp_path / "base", assistant)
    job(assistant, photos, tmp_path / "run").run()
    other = replace(STAGE, lora=LoraConfig(rank=4, alpha=6.0, dropout=0.2))
    start = load_model_folder(tmp_path / "base")
    with pytest.raises(UsageError, match="of other data, settings or weights"):
        job(start, photos, tmp_path / "run", stage=other, resume=True).run()


def test_lora_is_switched_on_and_off_by_settings() -> None:
    """A setting of the group switches it on, as does `on`; `none` switches it off; it needs the language model."""
    assert apply_overrides(FINETUNE, ["lora.rank=8"]).lora == LoraConfig(rank=8)
    assert apply_overrides(FINETUNE, ["lora=on"]).lora == LoraConfig()
    assert apply_overrides(FINETUNE_LORA, ["lora=none"]).lora is None
    assert apply_overrides(STAGE, ["lora=on"]).lora == STAGE.lora
    lora = apply_overrides(FINETUNE, ["lora.targets=q_proj,v_proj"]).lora
    assert lora == LoraConfig(targets=("q_proj", "v_proj"))
    with pytest.raises(UsageError, match=r"lora is set, but trainable is .*; add language to it"):
        apply_overrides(FINETUNE_LORA, ["trainable=projector,"])
    with pytest.raises(UsageError, match=r"as lora.NAME, or lora=on, lora=none"):
        apply_overrides(FINETUNE, ["lora=8"])
