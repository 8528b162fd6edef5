"""A training step does not depend on the split into micro-batches, and its loss is the plain padded one."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import Batch, BatchBuilder
from caldera.batches.samples import Sample
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import TrainingError
from caldera.formats.assemble import assemble
from caldera.formats.tokenizer import added_token_ids
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.hyperparameters import FINETUNE, PRETRAIN
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import StepReport, evaluate_loss, training_step
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


def take_step(
    assistant: LlavaBundle, batches: list[Batch], optimizer: torch.optim.Optimizer
) -> StepReport:
    """Take an optimizer step."""
    return training_step(assistant.model, batches, optimizer, max_grad_norm=1.0, compute=FP32)


def plain_mean_loss(assistant: LlavaBundle, samples: list[Sample]) -> Tensor:
    """Return the mean loss of padded rows over their supervised tokens, from logits at all positions."""
    model, rows, batch = assistant.model, padded(samples), batch_of(assistant, samples)
    embedded = model.embed(rows.ids, batch.images, batch.layouts)
    logits = model.language(inputs_embeds=embedded, attention_mask=rows.mask).logits
    return cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


def test_the_loss_is_the_plain_padded_one(assistant: LlavaBundle, photos: Path) -> None:
    """Logits at supervised tokens alone give the loss and gradients of logits at all tokens."""
    samples = mixed_samples(assistant, photos)
    batch = batch_of(assistant, samples)
    model = assistant.model

    loss = model(batch)
    plain = plain_mean_loss(assistant, samples) * batch.num_supervised_tokens

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


def test_added_tokens_take_no_part_in_the_loss(assistant: LlavaBundle, photos: Path) -> None:
    """The loss is that of a head without the rows that LLaVA's has not, whatever these rows hold."""
    model, tokenizer = assistant.model, assistant.tokenizer
    batch = batch_of(assistant, mixed_samples(assistant, photos))
    added = added_token_ids(tokenizer, len(model.embedding_weight))
    num_words = len(tokenizer.get_vocab()) - 2
    assert added == [*range(num_words, len(model.embedding_weight))]
    assert tokenizer.convert_ids_to_tokens(added[:2]) == ["<image>", "<pad>"]
    model.exclude_from_loss(added)
    head = model.language.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight[added] = 1e3

    loss = model(batch).total
    hidden = model.hidden_states(batch)[batch.target_positions]
    logits = hidden @ head.weight[:num_words].T

    expected = cross_entropy(logits, batch.target_ids, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    [gradient] = torch.autograd.grad(loss, [head.weight], retain_graph=True)
    [expected_gradient] = torch.autograd.grad(expected, [head.weight])
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    assert not gradient[added].any()


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


@pytest.mark.parametrize("max_grad_norm", [None, 1e9, 0.5, 0.01])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_step_is_that_of_the_mean_of_means_clipped_by_torch(
    assistant: LlavaBundle, photos: Path, size: int, max_grad_norm: float | None
) -> None:
    """Loss batches of two are LLaVA's batch of each device, here computed one after another in plain PyTorch."""
    model = assistant.model
    samples = mixed_samples(assistant, photos)
    set_trainable(model, ("projector", "language"))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    loss = torch.stack([plain_mean_loss(assistant, part) for part in parts]).mean()
    loss.backward()
    norm = clip_grad_norm_(weights, max_grad_norm or torch.inf)
    expected = [weight.detach() - weight.grad for weight in weights if weight.grad is not None]
    model.zero_grad()

    builder = BatchBuilder(
        load_images=DecodedImages(assistant.processor),
        share_prefixes=True,
        max_tokens=100,
        loss_batch_size=size,
    )
    report = training_step(
        model,
        builder.build(samples),
        torch.optim.SGD(weights, lr=1.0),
        max_grad_norm=max_grad_norm,
        compute=FP32,
    )

    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert len(expected) == len(weights)
    for weight, stepped in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, stepped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_changes_no_weight(
    assistant: LlavaBundle, photos: Path, value: float
) -> None:
    """Training stops before the update and names the records of the first such micro-batch (F5)."""
    good, *broken = (batch_of(assistant, [sample]) for sample in mixed_samples(assistant, photos))
    set_trainable(assistant.model, ("projector",))
    optimizer = build_optimizer(assistant.model, PRETRAIN)
    before = {name: weight.clone() for name, weight in assistant.model.state_dict().items()}
    broken = [replace(batch, images=batch.images * value) for batch in broken]
    with pytest.raises(
        TrainingError, match=r"loss nan is not finite at records \['1'\]; no weight"
    ):
        take_step(assistant, [good, *broken], optimizer)
    for name, weight in assistant.model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(weight.grad is None for weight in assistant.model.parameters())


def test_a_gradient_that_is_not_finite_names_all_records(
    assistant: LlavaBundle, photos: Path
) -> None:
    """Where every loss is finite, any record may be at fault; up to eight are named (F5)."""
    samples = mixed_samples(assistant, photos)[:1] * 9
    set_trainable(assistant.model, ("language",))
    weight = assistant.model.embedding_weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    optimizer = build_optimizer(assistant.model, FINETUNE)
    with pytest.raises(
        TrainingError, match=r"gradient norm nan is not finite at records \['0', .*\] and 1 more;"
    ):
        take_step(assistant, [batch_of(assistant, samples)], optimizer)


def test_a_batch_without_supervised_tokens_has_no_loss(
    assistant: LlavaBundle, photos: Path
) -> None:
    """It is 0, not NaN, in training and validation (F7); a record without any is rejected before."""
    batch = batch_of(assistant, mixed_samples(assistant, photos))
    masked = replace(
        batch, target_positions=batch.target_positions[:0], target_ids=batch.target_ids[:0]
    )
    set_trainable(assistant.model, ("projector",))
    report = take_step(assistant, [masked], build_optimizer(assistant.model, PRETRAIN))
    assert (report.loss, report.num_supervised_tokens, report.grad_norm) == (0.0, 0, 0.0)
    assert evaluate_loss(assistant.model, [masked], FP32) == 0.0


def test_a_conversation_alone_that_is_too_large_for_memory_says_so(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller micro-batch would not help; in validation as in training (F8)."""

    def fail(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has 1")

    monkeypatch.setattr(assistant.model, "hidden_states", fail)
    batch = batch_of(assistant, mixed_samples(assistant, photos)[2:])
    message = (
        f"out of memory at a micro-batch of 1 conversations with {len(batch.input_ids)} tokens and 3 images (3 views), "
        "the first '2': CUDA out of memory. Tried to allocate 9.00 GiB; set gradient_checkpointing=true, or lower "
        "max_length: this micro-batch is a single conversation"
    )
    optimizer = build_optimizer(assistant.model, PRETRAIN)
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        take_step(assistant, [batch], optimizer)
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        evaluate_loss(assistant.model, [batch], FP32)


@pytest.mark.parametrize("phase", ["forward", "update"])
def test_other_errors_of_torch_pass_through(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """They are bugs, and their traceback is needed."""

    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    optimizer = build_optimizer(assistant.model, PRETRAIN)
    if phase == "forward":
        monkeypatch.setattr(assistant.model, "hidden_states", fail)
    else:
        monkeypatch.setattr(optimizer, "step", fail)
    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        take_step(assistant, [batch_of(assistant, mixed_samples(assistant, photos))], optimizer)


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
