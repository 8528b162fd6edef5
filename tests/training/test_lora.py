"""A stage by low-rank factors: what moves, what is left on disk, and that it goes on where it was."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig, Runtime
from caldera.errors import UsageError
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.lora_adapter import merge_adapter
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.model.lora import LoraConfig, add_lora, linear_layers, lora_parameters
from caldera.overrides import apply_overrides
from caldera.progress import NoProgress, Progress
from caldera.templates.template import find_template
from caldera.training.checkpoint import latest_checkpoint
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.loop import evaluate_loss, training_step
from caldera.training.metrics_log import read_metrics
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.stage import FINETUNE, FINETUNE_LORA, Stage
from tests.laying import batch_of

FP32 = DeviceConfig(torch.device("cpu"), torch.float32)
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


def dialogues(count: int) -> list[Conversation]:
    """Return dialogues, every second one about an image."""
    told = []
    for number in range(count):
        shown = (ImageRef(f"{number % 7}.png"),) if number % 2 else ()
        turns = (
            Turn("user", (*shown, "what do you see?")),
            Turn("assistant", (("yes", "no", "the dog is on the left")[number % 3],)),
        )
        told.append(Conversation(f"r{number}", turns))
    return told


def job(assistant: LlavaBundle, photos: Path, out: Path, **changes: object) -> TrainingJob:
    """Return a job on forty dialogues."""
    given = {"stage": STAGE, "runtime": Runtime(FP32, NoProgress()), "resume": False, **changes}
    return TrainingJob(
        assistant=assistant,
        data=TrainingData(conversations=dialogues(40), images=photos),
        out=out,
        features=out.parent / "features",
        skipped=SkippedItems(),
        **given,  # type: ignore[arg-type]
    )


def samples_of(assistant: LlavaBundle, photos: Path) -> list[Sample]:
    """Return five samples."""
    maker = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=256,
    )
    return [maker.build(one, photos) for one in dialogues(5)]


def weights_of(assistant: LlavaBundle) -> dict[str, Tensor]:
    """Return a copy of every weight."""
    return {name: each.clone() for name, each in assistant.model.state_dict().items()}


def prepared(assistant: LlavaBundle, stage: Stage = STAGE) -> torch.optim.AdamW:
    """Put factors into an assistant, freeze the rest, and return the optimizer."""
    assert stage.lora
    language = assistant.model.language
    add_lora(language, linear_layers(language), stage.lora, seed=stage.seed)
    set_trainable(assistant.model, stage.trainable)
    return build_optimizer(assistant.model, stage)


def test_only_factors_and_projector_move(assistant: LlavaBundle, photos: Path) -> None:
    """After a step each factor and the projector have moved; all else is bit for bit what it was."""
    optimizer = prepared(assistant)
    factors = {id(each) for each in lora_parameters(assistant.model)}
    model = assistant.model.train()
    for _ in range(2):  # the first moves `up` alone, as `down` works through it
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        samples = samples_of(assistant, photos)
        batch = batch_of(assistant, samples)
        training_step(model, [batch], optimizer, max_grad_norm=1.0, compute=FP32, record_ids=[])
    moved = {name for name, each in model.named_parameters() if not torch.equal(each, before[name])}
    wanted = {
        name
        for name, each in model.named_parameters()
        if id(each) in factors or name.startswith("projector.")
    }
    assert moved == wanted
    assert len(wanted) == 2 * 14 + 4


def test_the_report_and_the_optimizer_know_the_factors(assistant: LlavaBundle) -> None:
    """The frozen weights are counted but do not learn; factors learn at the stage's rate, the projector at its own."""
    stage = replace(STAGE, trainable=("vision", *STAGE.trainable), vision_learning_rate=5e-4)
    optimizer = prepared(assistant, stage)
    model = assistant.model
    reports = {report.part: report for report in set_trainable(model, stage.trainable)}
    num_factors = sum(each.numel() for each in lora_parameters(model))
    assert reports["language"].trainable == num_factors < reports["language"].parameters
    sizes: dict[float, int] = {}
    for group in optimizer.param_groups:
        count = sum(each.numel() for each in group["params"])
        sizes[group["base_lr"]] = sizes.get(group["base_lr"], 0) + count
    assert sizes == {
        1e-2: num_factors,
        3e-3: reports["projector"].parameters,
        5e-4: reports["vision"].parameters,
    }


def test_factors_do_not_drop_out_in_validation(assistant: LlavaBundle, photos: Path) -> None:
    """The held-out loss is the same each time, though in training it is not."""
    prepared(assistant)
    model = assistant.model.train()
    with torch.no_grad():
        for factor in lora_parameters(model):
            factor.add_(0.3)
    samples = samples_of(assistant, photos)
    batch = batch_of(assistant, samples)
    assert evaluate_loss(model, [batch], FP32) == evaluate_loss(model, [batch], FP32)
    assert model(batch).mean != model(batch).mean


def test_a_run_leaves_an_adapter_and_the_merged_model(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """It learns; adapter and base give the model folder bit for bit; embeddings, norms and head are the base's."""
    save_model_folder(tmp_path / "base", assistant)
    base = weights_of(assistant)
    layers = {f"language.{layer}.weight" for layer in linear_layers(assistant.model.language)}

    trained, outcome = job(assistant, photos, tmp_path / "run").run()

    assert outcome is not None
    assert outcome.last_validation_loss is not None
    assert outcome.first_validation_loss is not None
    assert outcome.last_validation_loss < outcome.first_validation_loss - 0.2
    model = load_model_folder(tmp_path / "run" / "model")
    assert model.card.recipe["finetune"]["lora"]["rank"] == 3
    merged = merge_adapter(tmp_path / "run" / "adapter", load_model_folder(tmp_path / "base"))
    assert merged.card == model.card
    moved = set()
    for name, weight in weights_of(model).items():
        assert torch.equal(trained.model.state_dict()[name], weight), name
        assert torch.equal(merged.model.state_dict()[name], weight), name
        if not torch.equal(weight, base[name]):
            moved.add(name)
    assert moved == layers | {name for name in base if name.startswith("projector.")}


def test_a_broken_off_run_goes_on_bit_for_bit(
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    stops_at: Callable[[int], Progress],
) -> None:
    """Stopped after a checkpoint and started again: the weights, losses and adapter of an unbroken run."""

    def start() -> LlavaBundle:
        return assemble(vision_folder, language_folder, seed=3)

    unbroken, _ = job(start(), photos, tmp_path / "a").run()
    with pytest.raises(KeyboardInterrupt):
        job(start(), photos, tmp_path / "b", runtime=Runtime(FP32, stops_at(5))).run()
    found = latest_checkpoint(tmp_path / "b" / "checkpoints")
    assert found is not None
    assert found.step == 3
    assert not [name for name in found.tensors if name.endswith("q_proj.weight")]

    resumed, _ = job(start(), photos, tmp_path / "b", resume=True).run()

    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    losses = [
        [event.get("loss") for event in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in ("a", "b")
    ]
    assert losses[0] == losses[1]
    for file in (tmp_path / "a" / "adapter").iterdir():
        assert (tmp_path / "b" / "adapter" / file.name).read_bytes() == file.read_bytes()


def test_other_factors_are_another_run(
    assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A finished run of another rank is not passed off as this one."""
    save_model_folder(tmp_path / "base", assistant)
    job(assistant, photos, tmp_path / "run").run()
    other = replace(STAGE, lora=LoraConfig(rank=4, alpha=6.0, dropout=0.2))
    start = load_model_folder(tmp_path / "base")
    with pytest.raises(UsageError, match="of other data, settings or weights"):
        job(start, photos, tmp_path / "run", stage=other, resume=True).run()


def test_lora_is_switched_on_and_off_by_settings() -> None:
    """A setting of the group switches it on, `on` and `none` say so in words, and it needs the language model."""
    assert apply_overrides(FINETUNE, ["lora.rank=8"]).lora == LoraConfig(rank=8)
    assert apply_overrides(FINETUNE, ["lora=on"]).lora == LoraConfig()
    assert apply_overrides(FINETUNE_LORA, ["lora=none"]).lora is None
    assert apply_overrides(STAGE, ["lora=on"]).lora == STAGE.lora
    named = apply_overrides(FINETUNE, ["lora.targets=q_proj,v_proj"]).lora
    assert named == LoraConfig(targets=("q_proj", "v_proj"))
    with pytest.raises(UsageError, match=r"lora is set, but trainable is .*; add language to it"):
        apply_overrides(FINETUNE_LORA, ["trainable=projector,"])
    with pytest.raises(UsageError, match=r"as lora.NAME, or lora=on, lora=none"):
        apply_overrides(FINETUNE, ["lora=8"])
