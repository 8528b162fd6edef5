"""A packed, prefix-shared, cached, chunked step is the plain padded one: its loss, every gradient, and a whole run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import Batch, BatchBuilder
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig, Runtime
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.model import llava
from caldera.model.assistant import LlavaBundle
from caldera.model.batch_layout import BatchLayout, set_attention
from caldera.model.lora import LoraConfig, add_lora, linear_layers
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.templates.template import find_template
from caldera.training.job import cached_tower_features
from caldera.training.loop import training_step
from caldera.training.parameters import build_optimizer, set_trainable
from caldera.training.stage import FINETUNE, PRETRAIN, Part, Stage
from tests.laying import padded

FP32 = DeviceConfig(torch.device("cpu"), torch.float32)

QUESTIONS = ("what?", "how many dogs are there?", "what is on the left of the dog?")


def talk(name: str, images: Sequence[str], at: int, turns: int = 1) -> Conversation:
    """Return a conversation about images."""
    said = []
    for turn in range(turns):
        asked = QUESTIONS[(at + turn) % 3]
        shown = tuple(ImageRef(each) for each in images) if turn == 0 else ()
        said.append(Turn("user", (*shown, f"\n{asked}") if shown else (asked,)))
        said.append(Turn("assistant", ("a dog on the left, " * ((at + turn) % 4) + "yes",)))
    return Conversation(name, tuple(said))


ONE = [talk(f"{at}", [f"{at // 3}.png"], at, 1 + at % 2) for at in range(7)]
SEVERAL = [talk(f"s{at}", ["1.png", "4.png", "2.png"][: 2 + at // 2], at) for at in range(4)]
TEXT = [talk(f"t{at}", [], at) for at in range(3)]
CAPTIONS = [
    Conversation(
        f"c{at}",
        (Turn("user", (ImageRef(f"{at // 3}.png"),)), Turn("assistant", (f"a dog {QUESTIONS[at % 3]}",))),
    )
    for at in range(7)
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is trained on, and what of it learns."""

    stage: Stage
    told: Sequence[Conversation]
    tiles: bool = False


EVERYTHING: tuple[Part, ...] = ("vision", "projector", "language")
CASES = {
    "pretrain": Case(PRETRAIN, CAPTIONS),
    "finetune": Case(FINETUNE, ONE),
    "finetune all": Case(replace(FINETUNE, trainable=EVERYTHING), ONE),
    "lora": Case(replace(FINETUNE, lora=LoraConfig(rank=2, alpha=4, dropout=0.0)), ONE),
    "tiles": Case(FINETUNE, [*ONE, *SEVERAL], tiles=True),
    "several images": Case(FINETUNE, SEVERAL),
    "text alone": Case(FINETUNE, TEXT),
    "mixed": Case(FINETUNE, [*SEVERAL, *TEXT, *ONE]),
    "small passes": Case(replace(FINETUNE, micro_batch_tokens=150), [*SEVERAL, *TEXT, *ONE]),
    "recomputed": Case(replace(FINETUNE, gradient_checkpointing=True), [*SEVERAL, *ONE]),
    "pretrain recomputed": Case(replace(PRETRAIN, gradient_checkpointing=True), CAPTIONS),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each case."""
    return CASES[request.param]


def prepared(
    case: Case, vision: Path, language: Path, photos: Path
) -> tuple[LlavaBundle, list[Sample]]:
    """Return a fresh assistant, ready to learn, and the samples."""
    made = assemble(vision, language, seed=3)
    if case.tiles:
        side = made.processor.side
        made = with_image_aspect(
            made, "anyres", ((side, 2 * side), (2 * side, side), (3 * side, side)), seed=2
        )
    if case.stage.lora:
        layers = linear_layers(made.model.language)
        add_lora(made.model.language, layers, case.stage.lora, seed=1)
        with torch.no_grad():
            for name, weight in made.model.language.named_parameters():
                if name.endswith("up"):
                    weight.add_(
                        0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
                    )
    set_trainable(made.model, case.stage.trainable)
    maker = SampleBuilder(
        tokenizer=made.tokenizer, template=find_template(case.stage.template),
        image_token_id=made.model.image_token_id, layout=made.processor.layout,
        count_tokens=made.model.count_tokens, max_length=1000,
    )  # fmt: skip
    return made, [maker.build(each, photos) for each in case.told]


def plain_loss(made: LlavaBundle, samples: Sequence[Sample]) -> Tensor:
    """Return the mean loss of a padded batch, with pixels for each sample and logits at every position."""
    model, rows = made.model, padded(samples)
    images = DecodedImages(made.processor)([path for each in samples for path in each.images])
    layouts = [layout for each in samples for layout in each.layouts]
    logits = model.language(
        inputs_embeds=model.embed(rows.ids, images, layouts), attention_mask=rows.mask
    ).logits  # (rows, tokens, vocabulary)
    return cross_entropy(
        logits[:, :-1].flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
    )


def source(
    made: LlavaBundle, case: Case, samples: Sequence[Sample], folder: Path
) -> Callable[..., Tensor]:
    """Return kept features where the tower is frozen, else pixels."""
    paths = list(dict.fromkeys(path for each in samples for path in each.images))
    if "vision" in case.stage.trainable or not paths:
        return DecodedImages(made.processor)
    return cached_tower_features(made, folder, paths, runtime=Runtime(FP32, NoProgress()))


def gradients(made: LlavaBundle) -> dict[str, Tensor]:
    """Return a copy of all gradients, and forget them."""
    found = {
        name: each.grad.clone()
        for name, each in made.model.named_parameters()
        if each.grad is not None
    }
    made.model.zero_grad(set_to_none=True)
    return found


def builder(images: Callable[..., Tensor], stage: Stage, *, share: bool) -> BatchBuilder:
    """Return a builder of micro-batches with the limits of a stage."""
    return BatchBuilder(
        load_images=images,
        share_prefixes=share,
        max_tokens=stage.micro_batch_tokens,
        max_samples=stage.micro_batch_size,
    )


def arrange(made: LlavaBundle, arrangement: BatchLayout) -> None:
    """Set the model to an arrangement."""
    made.model.batch_layout = arrangement
    set_attention(made.model.language, arrangement, "eager")


@pytest.mark.parametrize("arrangement", ["packed", "masked", "padded"])
def test_loss_and_every_gradient_are_the_plain_ones(
    case: Case,
    arrangement: BatchLayout,
    vision_folder: Path,
    language_folder: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To 1e-5 of their size, in fp32."""
    monkeypatch.setattr(llava, "MAX_LOGIT_BYTES", 4 * 300 * 5)  # a few positions at once
    made, samples = prepared(case, vision_folder, language_folder, photos)
    arrange(made, "padded")
    loss = plain_loss(made, samples)
    loss.backward()
    wanted = gradients(made)

    arrange(made, arrangement)
    made.model.set_gradient_checkpointing(case.stage.gradient_checkpointing)
    made.model.train()
    share = arrangement != "padded"
    images = source(made, case, samples, tmp_path)
    batches = builder(images, case.stage, share=share).build(samples)
    learned = sum(batch.num_supervised_tokens for batch in batches)
    total = 0.0
    for batch in batches:
        part = made.model(batch)
        (part.total / learned).backward()
        total += float(part.total.detach())
    given = gradients(made)

    assert total / learned == pytest.approx(float(loss.detach()), rel=1e-5)
    moved = {name for name, each in wanted.items() if each.any()}
    assert moved <= given.keys()
    assert len(moved) >= (4 if case.stage.trainable == PRETRAIN.trainable else 10)
    whole = torch.stack([each.norm() for each in wanted.values()]).norm()
    for name in moved:
        difference = (given[name] - wanted[name]).norm()
        assert difference <= 1e-5 * wanted[name].norm() + 1e-7 * whole, f"{name}: {difference}"
    tokens = sum(len(batch.input_ids) for batch in batches)
    together = [each for each in samples if each.images]
    assert (tokens < sum(each.length for each in samples)) == (share and len(together) > 3)


def curve(made: LlavaBundle, stage: Stage, batches: Callable[[int], list[Batch]]) -> list[float]:
    """Train 50 steps and return the losses."""
    optimizer = build_optimizer(made.model, stage)
    made.model.train()
    return [
        training_step(
            made.model, batches(step), optimizer, max_grad_norm=1.0, compute=FP32, record_ids=[]
        ).loss
        for step in range(50)
    ]


def test_fifty_steps_give_the_same_curve(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Packed with shared prefixes and kept features, or each sample a padded row with its pixels: to 1e-4."""
    stage = replace(FINETUNE, learning_rate=1e-3)
    case = Case(stage, [*ONE, *SEVERAL, *TEXT])
    curves = []
    for arrangement in ("packed", "padded"):
        made, samples = prepared(case, vision_folder, language_folder, photos)
        arrange(made, arrangement)
        share = arrangement == "packed"
        images = source(made, case, samples, tmp_path) if share else DecodedImages(made.processor)

        def batches(step: int) -> list[Batch]:
            some = [samples[(step * 5 + at) % len(samples)] for at in range(5)]  # noqa: B023
            return builder(images, stage, share=share).build(some)  # noqa: B023

        curves.append(curve(made, stage, batches))
    assert curves[0][-1] < 0.6 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
