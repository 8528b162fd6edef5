"""What learning does: only named parts move, batches may be split, and the loss is the plain one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig
from caldera.errors import TrainingError, UsageError
from caldera.formats.assemble import assemble
from caldera.model.assistant import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX
from caldera.templates.template import find_template
from caldera.training.loop import evaluate_loss, training_step
from caldera.training.parameters import build_optimizer, lr_factor, set_lr, set_trainable
from caldera.training.stage import FINETUNE, PRETRAIN, Part
from tests.laying import batch_of, padded

FP32 = DeviceConfig(torch.device("cpu"), torch.float32)


def mixed_samples(assistant: LlavaBundle, photos: Path) -> list[Sample]:
    """Return samples with no image, one, and three, of different lengths."""
    maker = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=256,
    )
    told = []
    for number, count in enumerate((0, 1, 3)):
        shown = tuple(ImageRef(f"{at}.png") for at in range(count))
        turns = (
            Turn("user", (*shown, "how many dogs are there?")),
            Turn("assistant", ("the cat is on the left, " * number + "no",)),
        )
        told.append(maker.build(Conversation(str(number), turns), photos))
    return told


def test_the_loss_is_the_plain_padded_one(assistant: LlavaBundle, photos: Path) -> None:
    """Logits only where labels are give the loss and gradients of logits everywhere."""
    samples = mixed_samples(assistant, photos)
    batch, rows = batch_of(assistant, samples), padded(samples)
    model = assistant.model

    ours = model(batch)
    embedded = model.embed(rows.ids, batch.images, batch.layouts)
    logits = model.language(inputs_embeds=embedded, attention_mask=rows.mask).logits
    plain = cross_entropy(
        logits[:, :-1].flatten(0, 1),
        rows.labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )

    torch.testing.assert_close(ours.total, plain, rtol=1e-5, atol=0)
    parameters = [each for each in model.parameters() if each.requires_grad]
    wanted = torch.autograd.grad(plain, parameters, allow_unused=True)
    given = torch.autograd.grad(ours.total, parameters, allow_unused=True)
    compared = 0
    for one, other in zip(wanted, given, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 20


def test_a_mixed_batch_gives_what_each_sample_gives(assistant: LlavaBundle, photos: Path) -> None:
    """Samples with no, one and three images do not disturb each other."""
    samples = mixed_samples(assistant, photos)
    together = assistant.model(batch_of(assistant, samples))
    alone = [assistant.model(batch_of(assistant, [sample])) for sample in samples]
    torch.testing.assert_close(
        together.total, torch.stack([loss.total for loss in alone]).sum(), rtol=1e-5, atol=0
    )
    assert together.num_tokens == sum(loss.num_tokens for loss in alone)


@pytest.mark.parametrize(
    "parts",
    [("projector",), ("projector", "language"), ("vision",), ("vision", "projector", "language")],
)
def test_one_step_moves_only_the_named_parts(
    assistant: LlavaBundle, photos: Path, parts: tuple[Part, ...]
) -> None:
    """After a step the frozen weights are bit for bit what they were, and each named part has moved."""
    model = assistant.model
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    reports = set_trainable(model, parts)
    stage = replace(FINETUNE, trainable=parts, learning_rate=0.01)
    optimizer = build_optimizer(model, stage)

    training_step(
        model,
        [batch_of(assistant, mixed_samples(assistant, photos))],
        optimizer,
        max_grad_norm=1.0,
        compute=FP32,
        record_ids=["0", "1", "2"],
    )

    moved = {
        name.split(".")[0]
        for name, each in model.named_parameters()
        if not torch.equal(each, before[name])
    }
    assert moved == set(parts)
    assert {report.part for report in reports if report.trainable} == set(parts)


def test_splitting_a_batch_does_not_change_the_step(assistant: LlavaBundle, photos: Path) -> None:
    """Micro-batches of one sample each give the weights of one batch of all."""
    samples = mixed_samples(assistant, photos)
    start = {name: each.clone() for name, each in assistant.model.state_dict().items()}
    results = []
    for split in ([samples], [[sample] for sample in samples]):
        assistant.model.load_state_dict(start)
        set_trainable(assistant.model, ("projector",))
        optimizer = torch.optim.SGD(assistant.model.projector.parameters(), lr=0.1)
        report = training_step(
            assistant.model,
            [batch_of(assistant, part) for part in split],
            optimizer,
            max_grad_norm=1e9,
            compute=FP32,
            record_ids=[],
        )
        results.append((report, assistant.model.projector.state_dict()["linear_1.weight"].clone()))
    (one, weights), (other, same) = results
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.num_supervised_tokens == other.num_supervised_tokens
    torch.testing.assert_close(weights, same, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_moves_nothing(assistant: LlavaBundle, photos: Path) -> None:
    """Training stops before the update and names the records."""
    set_trainable(assistant.model, ("projector",))
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] = torch.nan
    before = assistant.model.projector.layers[1].weight.detach().clone()
    optimizer = build_optimizer(assistant.model, PRETRAIN)
    with pytest.raises(TrainingError, match=r"not finite at records \['0', '1', '2'\]"):
        training_step(
            assistant.model,
            [batch_of(assistant, mixed_samples(assistant, photos))],
            optimizer,
            max_grad_norm=1.0,
            compute=FP32,
            record_ids=["0", "1", "2"],
        )
    assert torch.equal(assistant.model.projector.layers[1].weight, before)


def test_validation_learns_nothing(assistant: LlavaBundle, photos: Path) -> None:
    """Measuring the loss leaves weights, gradients and mode alone."""
    assistant.model.train()
    batches = [batch_of(assistant, mixed_samples(assistant, photos))]
    first, second = (evaluate_loss(assistant.model, batches, FP32) for _ in range(2))
    assert first == second
    assert assistant.model.training
    assert all(each.grad is None for each in assistant.model.parameters())


def test_dropout_is_on_in_the_parts_that_learn_alone(
    vision_folder: Path, gpt2_folder: Path, photos: Path
) -> None:
    """A frozen language model gives the same loss each time; one that learns draws its own for each seed."""
    assistant = assemble(vision_folder, gpt2_folder, seed=3)
    batch = batch_of(assistant, mixed_samples(assistant, photos))

    def losses() -> list[float]:
        drawn = []
        for seed in (1, 1, 2):
            with FP32.fork_rng(0, seed):
                drawn.append(float(assistant.model(batch).total.detach()))
        return drawn

    set_trainable(assistant.model, ("projector",))
    assistant.model.train()
    assert len(set(losses())) == 1
    set_trainable(assistant.model, ("projector", "language"))
    assistant.model.train()
    first, same, other = losses()
    assert first == same != other


def test_seeding_a_step_changes_nothing_outside() -> None:
    """What the caller draws goes on as if the step had drawn nothing."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with FP32.fork_rng(1, 2):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)


def test_the_rate_rises_and_falls() -> None:
    """Warm-up in a line over three percent of the steps, then half a cosine to zero."""
    factors = [lr_factor(step, 200, 0.03) for step in range(200)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[103] == pytest.approx(0.5, abs=0.01)
    assert factors[-1] < 0.001


def test_parts_may_have_their_own_rate(assistant: LlavaBundle) -> None:
    """The projector's rate is used for the projector alone, and both follow the schedule."""
    set_trainable(assistant.model, ("projector", "language"))
    stage = replace(FINETUNE, learning_rate=0.2, projector_learning_rate=0.8)
    optimizer = build_optimizer(assistant.model, stage)
    set_lr(optimizer, 0.5)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    assert {rates[id(each)] for each in assistant.model.projector.parameters()} == {0.4}
    assert {rates[id(each)] for each in assistant.model.language.parameters()} == {0.1}


def test_a_stage_names_everything_that_is_wrong() -> None:
    """All faults of a stage are gathered in one message."""
    with pytest.raises(
        UsageError, match=r"learning_rate is -1; .*batch_size is 0; .*warmup_ratio is 2"
    ):
        replace(PRETRAIN, learning_rate=-1, batch_size=0, warmup_ratio=2)
    with pytest.raises(UsageError, match="name one or more of"):
        replace(PRETRAIN, trainable=("projektor",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"max_steps": -3}, "max_steps is -3"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"micro_batch_size": -2}, "micro_batch_size is -2"),
        ({"projector_learning_rate": 0.0}, "projector_learning_rate is 0.0; it must be over 0"),
        ({"projector_learning_rate": -1.0}, "projector_learning_rate is -1.0"),
        ({"betas": (2.0, 3.0)}, r"betas are \(2.0, 3.0\); both must lie in \[0, 1\)"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"weight_decay": float("nan")}, "weight_decay is nan; it must be at least 0 and finite"),
    ],
)
def test_a_setting_that_would_lie_or_crash_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    """A number out of its range is not taken for 'not set', nor found out by torch in the middle."""
    with pytest.raises(UsageError, match=message):
        replace(PRETRAIN, **changes)
