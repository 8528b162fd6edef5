"""A training step does not depend on the split into micro-batches, and its loss is the plain padded one."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from caldera.batches.samples import Sample
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import TrainingError
from caldera.formats.assemble import assemble
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.hyperparameters import PRETRAIN
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import evaluate_loss, training_step
from tests.laying import batch_of, padded
from tests.training.jobs import FP32, build_samples


def mixed_samples(assistant: LlavaBundle, photos: Path) -> list[Sample]:
    """Return samples with no image, one, and three, of different lengths."""
    conversations = []
    for number, count in enumerate((0, 1, 3)):
        images = tuple(ImageRef(f"{index}.png") for index in range(count))
        turns = (
            Turn("user", (*images, "how many dogs are there?")),
            Turn("assistant", ("the cat is on the left, " * number + "no",)),
        )
        conversations.append(Conversation(str(number), turns))
    return build_samples(assistant, conversations, photos)


def test_the_loss_is_the_plain_padded_one(assistant: LlavaBundle, photos: Path) -> None:
    """Logits at supervised tokens alone give the loss and gradients of logits at all tokens."""
    samples = mixed_samples(assistant, photos)
    batch, rows = batch_of(assistant, samples), padded(samples)
    model = assistant.model

    loss = model(batch)
    embedded = model.embed(rows.ids, batch.images, batch.layouts)
    logits = model.language(inputs_embeds=embedded, attention_mask=rows.mask).logits
    plain = cross_entropy(
        logits[:, :-1].flatten(0, 1),
        rows.labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )

    torch.testing.assert_close(loss.total, plain, rtol=1e-5, atol=0)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(plain, parameters, allow_unused=True)
    actual = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    compared = 0
    for expected_gradient, gradient in zip(expected, actual, strict=True):
        if expected_gradient is not None and gradient is not None:
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
            compared += 1
    assert compared > 20


def test_samples_of_a_batch_do_not_affect_each_other(assistant: LlavaBundle, photos: Path) -> None:
    """The loss of samples with no, one and three images is the sum of their losses alone."""
    samples = mixed_samples(assistant, photos)
    batch_loss = assistant.model(batch_of(assistant, samples))
    losses = [assistant.model(batch_of(assistant, [sample])) for sample in samples]
    total = torch.stack([loss.total for loss in losses]).sum()
    torch.testing.assert_close(batch_loss.total, total, rtol=1e-5, atol=0)
    assert batch_loss.num_tokens == sum(loss.num_tokens for loss in losses)


def test_splitting_a_batch_does_not_change_the_step(assistant: LlavaBundle, photos: Path) -> None:
    """Micro-batches of one sample each give the weights of one batch of all samples."""
    samples = mixed_samples(assistant, photos)
    start = {name: weight.clone() for name, weight in assistant.model.state_dict().items()}
    reports, weights = [], []
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
        )
        reports.append(report)
        weights.append(assistant.model.projector.state_dict()["linear_1.weight"].clone())
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-6)
    assert reports[0].num_supervised_tokens == reports[1].num_supervised_tokens
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_changes_no_weight(assistant: LlavaBundle, photos: Path) -> None:
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
        )
    assert torch.equal(assistant.model.projector.layers[1].weight, before)


def test_validation_changes_nothing(assistant: LlavaBundle, photos: Path) -> None:
    """Measuring the loss leaves weights, gradients and mode unchanged."""
    assistant.model.train()
    batches = [batch_of(assistant, mixed_samples(assistant, photos))]
    first, second = (evaluate_loss(assistant.model, batches, FP32) for _ in range(2))
    assert first == second
    assert assistant.model.training
    assert all(weight.grad is None for weight in assistant.model.parameters())


def test_dropout_is_active_in_trainable_parts_only(
    vision_folder: Path, gpt2_folder: Path, photos: Path
) -> None:
    """A frozen language model gives the same loss each time; a trainable one has a loss for each seed."""
    assistant = assemble(vision_folder, gpt2_folder, seed=3)
    batch = batch_of(assistant, mixed_samples(assistant, photos))

    def losses() -> list[float]:
        values = []
        for seed in (1, 1, 2):
            with FP32.fork_rng(0, seed):
                values.append(float(assistant.model(batch).total.detach()))
        return values

    set_trainable(assistant.model, ("projector",))
    assistant.model.train()
    assert len(set(losses())) == 1
    set_trainable(assistant.model, ("projector", "language"))
    assistant.model.train()
    first, second, other = losses()
    assert first == second != other


def test_seeding_a_step_changes_no_random_numbers_outside() -> None:
    """The caller's random numbers are the same as without the step."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with FP32.fork_rng(1, 2):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
