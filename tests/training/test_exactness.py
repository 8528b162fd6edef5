"""Packing, shared prefixes, cached features and chunks change neither the loss, nor a gradient, nor a training run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from caldera.batches.image_sources import DecodedImages, ImageSource
from caldera.batches.packing import Batch, BatchBuilder
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import Runtime
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.model import llava
from caldera.model.batch_layout import BatchLayout, set_attention
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import add_lora, linear_layers
from caldera.model.lora_config import LoraConfig
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.templates.registry import find_template
from caldera.training.hyperparameters import FINETUNE, PRETRAIN, Part, Stage
from caldera.training.job import cached_tower_features
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.step import training_step
from tests.laying import padded
from tests.training.jobs import FP32

QUESTIONS = ("what?", "how many dogs are there?", "what is on the left of the dog?")


def conversation(name: str, images: Sequence[str], index: int, turns: int = 1) -> Conversation:
    """Return a conversation about images; the texts depend on `index`."""
    dialogue = []
    for turn in range(turns):
        question = QUESTIONS[(index + turn) % 3]
        refs = tuple(ImageRef(image) for image in images) if turn == 0 else ()
        dialogue.append(Turn("user", (*refs, f"\n{question}") if refs else (question,)))
        answer = "a dog on the left, " * ((index + turn) % 4) + "yes"
        dialogue.append(Turn("assistant", (answer,)))
    return Conversation(name, tuple(dialogue))


def caption(index: int) -> Conversation:
    """Return a caption of an image."""
    turns = (
        Turn("user", (ImageRef(f"{index // 3}.png"),)),
        Turn("assistant", (f"a dog {QUESTIONS[index % 3]}",)),
    )
    return Conversation(f"c{index}", turns)


ONE_IMAGE = [conversation(f"{i}", [f"{i // 3}.png"], i, 1 + i % 2) for i in range(7)]
SEVERAL_IMAGES = [
    conversation(f"s{i}", ["1.png", "4.png", "2.png"][: 2 + i // 2], i) for i in range(4)
]
TEXT = [conversation(f"t{i}", [], i) for i in range(3)]
CAPTIONS = [caption(i) for i in range(7)]


@dataclass(frozen=True)
class Case:
    """A stage and its data."""

    stage: Stage
    conversations: Sequence[Conversation]
    tiles: bool = False


ALL_PARTS: tuple[Part, ...] = ("vision", "projector", "language")
MIXED = [*SEVERAL_IMAGES, *TEXT, *ONE_IMAGE]
CASES = {
    "pretrain": Case(PRETRAIN, CAPTIONS),
    "finetune": Case(FINETUNE, ONE_IMAGE),
    "finetune all": Case(replace(FINETUNE, trainable=ALL_PARTS), ONE_IMAGE),
    "lora": Case(replace(FINETUNE, lora=LoraConfig(rank=2, alpha=4, dropout=0.0)), ONE_IMAGE),
    "tiles": Case(FINETUNE, [*ONE_IMAGE, *SEVERAL_IMAGES], tiles=True),
    "several images": Case(FINETUNE, SEVERAL_IMAGES),
    "text alone": Case(FINETUNE, TEXT),
    "mixed": Case(FINETUNE, MIXED),
    "small micro-batches": Case(replace(FINETUNE, micro_batch_tokens=150), MIXED),
    "loss batches": Case(replace(FINETUNE, loss_batch_size=4, micro_batch_tokens=150), MIXED),
    "gradient checkpointing": Case(
        replace(FINETUNE, gradient_checkpointing=True), [*SEVERAL_IMAGES, *ONE_IMAGE]
    ),
    "pretrain, gradient checkpointing": Case(
        replace(PRETRAIN, gradient_checkpointing=True), CAPTIONS
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each case."""
    return CASES[request.param]


def build(
    case: Case, vision: Path, language: Path, photos: Path
) -> tuple[LlavaBundle, list[Sample]]:
    """Return a fresh model with its trainable parts set, and the samples."""
    assistant = assemble(vision, language, seed=3)
    if case.tiles:
        side = assistant.processor.side
        pinpoints = ((side, 2 * side), (2 * side, side), (3 * side, side))
        assistant = with_image_aspect(assistant, "anyres", pinpoints, seed=2)
    model = assistant.model
    if case.stage.lora:
        add_lora(model.language, linear_layers(model.language), case.stage.lora, seed=1)
        with torch.no_grad():
            for name, weight in model.language.named_parameters():
                if name.endswith("up"):
                    rng = torch.Generator().manual_seed(4)
                    weight.add_(0.1 * torch.randn(weight.shape, generator=rng))
    set_trainable(model, case.stage.trainable)
    builder = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template(case.stage.template),
        image_token_id=model.image_token_id,
        layouts=assistant.processor.layouts,
        count_tokens=model.count_tokens,
        max_length=1000,
    )
    return assistant, [builder.build(item, photos) for item in case.conversations]


def plain_loss(
    assistant: LlavaBundle, samples: Sequence[Sample], loss_batch_size: int | None = None
) -> Tensor:
    """Return the loss of padded batches, with pixels for each sample and logits at every position.

    It is the mean of the means of all batches of `loss_batch_size` samples, as of those of several devices, or of
    gradient accumulation; None is one batch.
    """
    size = loss_batch_size or len(samples)
    if size < len(samples):
        starts = range(0, len(samples), size)
        return torch.stack([plain_loss(assistant, samples[i : i + size]) for i in starts]).mean()
    model, rows = assistant.model, padded(samples)
    images = DecodedImages(assistant.processor)([path for item in samples for path in item.images])
    layouts = [layout for sample in samples for layout in sample.layouts]
    logits = model.language(
        inputs_embeds=model.embed(rows.ids, images, layouts), attention_mask=rows.mask
    ).logits  # (rows, tokens, vocabulary)
    return cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


def image_source(
    assistant: LlavaBundle, case: Case, samples: Sequence[Sample], folder: Path
) -> ImageSource:
    """Return cached features where the tower is frozen, else pixels."""
    paths = list(dict.fromkeys(path for sample in samples for path in sample.images))
    if "vision" in case.stage.trainable or not paths:
        return DecodedImages(assistant.processor)
    return cached_tower_features(assistant, folder, paths, runtime=Runtime(FP32, NoProgress()))


def batch_builder(images: ImageSource, stage: Stage, *, share: bool) -> BatchBuilder:
    """Return a builder of micro-batches with the limits of a stage."""
    return BatchBuilder(
        load_images=images,
        share_prefixes=share,
        max_tokens=stage.micro_batch_tokens,
        max_samples=stage.micro_batch_size,
        loss_batch_size=stage.loss_batch_size,
    )


def take_gradients(assistant: LlavaBundle) -> dict[str, Tensor]:
    """Return a copy of all gradients, and reset them."""
    gradients = {
        name: weight.grad.clone()
        for name, weight in assistant.model.named_parameters()
        if weight.grad is not None
    }
    assistant.model.zero_grad(set_to_none=True)
    return gradients


def set_layout(assistant: LlavaBundle, layout: BatchLayout) -> None:
    """Set the model to a batch layout."""
    assistant.model.batch_layout = layout
    set_attention(assistant.model.language, layout, "eager")


@pytest.mark.parametrize("layout", ["packed", "masked", "padded"])
def test_loss_and_every_gradient_are_the_plain_ones(
    case: Case,
    layout: BatchLayout,
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To a relative difference of 1e-5, in fp32."""
    # A few positions per chunk.
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * 300 * 5)
    assistant, samples = build(case, vision_folder, language_folder, photos)
    model = assistant.model
    set_layout(assistant, "padded")
    loss = plain_loss(assistant, samples, case.stage.loss_batch_size)
    loss.backward()
    expected = take_gradients(assistant)

    set_layout(assistant, layout)
    model.set_gradient_checkpointing(case.stage.gradient_checkpointing)
    model.train()
    share = layout != "padded"
    images = image_source(assistant, case, samples, tmp_path)
    batches = batch_builder(images, case.stage, share=share).build(samples)
    num_supervised = sum(batch.num_supervised_tokens for batch in batches)
    total = 0.0
    for batch in batches:
        weighted = model(batch).total * batch.loss_weight
        (weighted / num_supervised).backward()
        total += float(weighted.detach())
    actual = take_gradients(assistant)

    assert total / num_supervised == pytest.approx(float(loss.detach()), rel=1e-5)
    nonzero = {name for name, gradient in expected.items() if gradient.any()}
    assert nonzero <= actual.keys()
    assert len(nonzero) >= (4 if case.stage.trainable == PRETRAIN.trainable else 10)
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name in nonzero:
        difference = (actual[name] - expected[name]).norm()
        assert difference <= 1e-5 * expected[name].norm() + 1e-7 * norm, f"{name}: {difference}"
    num_tokens = sum(len(batch.input_ids) for batch in batches)
    with_images = [sample for sample in samples if sample.images]
    is_shared = num_tokens < sum(sample.length for sample in samples)
    assert is_shared == (share and len(with_images) > 3)


def train_steps(
    assistant: LlavaBundle, stage: Stage, batches: Callable[[int], list[Batch]]
) -> list[float]:
    """Train 50 steps and return the losses."""
    optimizer = build_optimizer(assistant.model, stage)
    assistant.model.train()
    return [
        training_step(
            assistant.model,
            batches(step),
            optimizer,
            max_grad_norm=1.0,
            compute=FP32,
        ).loss
        for step in range(50)
    ]


def test_fifty_steps_have_the_same_losses(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Packed with shared prefixes and cached features, or each sample a padded row with its pixels: to 1e-4."""
    stage = replace(FINETUNE, learning_rate=1e-3)
    case = Case(stage, [*ONE_IMAGE, *SEVERAL_IMAGES, *TEXT])
    losses = []
    layouts: tuple[BatchLayout, ...] = ("packed", "padded")
    for layout in layouts:
        assistant, samples = build(case, vision_folder, language_folder, photos)
        set_layout(assistant, layout)
        share = layout == "packed"
        images: ImageSource = DecodedImages(assistant.processor)
        if share:
            images = image_source(assistant, case, samples, tmp_path)
        builder = batch_builder(images, stage, share=share)

        def batches(step: int) -> list[Batch]:
            indices = [(step * 5 + i) % len(samples) for i in range(5)]  # noqa: B023
            return builder.build([samples[index] for index in indices])  # noqa: B023

        losses.append(train_steps(assistant, stage, batches))
    assert losses[0][-1] < 0.6 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
