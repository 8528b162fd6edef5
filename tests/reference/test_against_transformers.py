"""What transformers' own LLaVA and LLaVA-NeXT give on the same folder: logits, answers, loss, gradients, in fp32.

Images are decoded by caldera (upright, white under what is transparent), which transformers leaves to its users.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from caldera.batches.image_sources import DecodedImages
from caldera.batches.samples import Sample, SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.assemble import assemble
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.decoding import open_image
from caldera.images.processor import ASPECTS
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.templates.template import VICUNA_SYSTEM, find_template
from caldera.training.parameters import set_trainable
from caldera.training.stage import FINETUNE, PRETRAIN, Part
from tests.laying import batch_of, padded
from tests.tiny_languages import LANGUAGES, WIDTHS

pytestmark = pytest.mark.reference

TOLERANCE = 1e-5
NEW_TOKENS = 8
VISION = CLIPVisionConfig(
    hidden_size=10,
    intermediate_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=6,
    patch_size=2,
)


@pytest.fixture
def odd_images(tmp_path: Path) -> list[Path]:
    """Images as people have them: a line, a column, a dot, grey, transparent, turned, wide, tall."""
    rng = np.random.default_rng(7)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    clear = noise(23, 11).convert("RGBA")
    clear.putalpha(noise(23, 11).convert("L"))
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "line.png": (noise(1000, 1), {}),
        "column.png": (noise(1, 1000), {}),
        "dot.png": (noise(1, 1), {}),
        "grey.png": (noise(17, 29).convert("L"), {}),
        "clear.png": (clear, {}),
        "turned.jpg": (noise(31, 13), {"exif": turned}),
        "wide.webp": (noise(61, 7), {"lossless": True}),
        "tall.png": (noise(5, 41), {}),
    }
    for name, (image, options) in made.items():
        image.save(tmp_path / name, **options)
    return [tmp_path / name for name in made]


def asked(images: Sequence[Path], count: int) -> list[Conversation]:
    """Return questions about 0, 1, 2 or 3 of the images, each about other ones."""
    words = (
        "what is there?",
        "how many dogs are on the left?",
        "yes or no: a bird",
        "what? where? how many?",
    )
    questions = []
    for number in range(count):
        shown = [images[(number + at * 3) % len(images)] for at in range(number % 4)]
        text = f"{words[number % 3]} " * (1 + number % 5)
        parts: tuple[str | ImageRef, ...] = (
            *(ImageRef(str(path)) for path in shown),
            f"\n{text}x" if shown else f"{text}x",
        )
        questions.append(Conversation(str(number), (Turn("user", parts),)))
    return questions


class Theirs:
    """A model folder in transformers' own class and processor."""

    def __init__(self, folder: Path) -> None:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        self.model, report = loaded
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, conversation: Conversation) -> Any:  # noqa: ANN401 - transformers' own
        """Return what the processor makes of a question."""
        text = "".join(
            "<image>" if isinstance(part, ImageRef) else part
            for part in conversation.turns[0].parts
        )
        shown = [open_image(Path(path)) for path in conversation.images]
        prompt = f"{VICUNA_SYSTEM} USER: {text} ASSISTANT:"
        return self.processor(images=shown or None, text=prompt, return_tensors="pt")


@torch.no_grad()
def our_logits(
    assistant: LlavaBundle, conversation: Conversation
) -> tuple[list[int], torch.Tensor]:
    """Return our prompt's ids and its logits, (tokens, vocabulary)."""
    images = DecodedImages(assistant.processor)
    prompt = BatchGenerator(assistant, images).prompt(conversation)
    embedded = assistant.model.embed(
        torch.tensor([prompt.ids]), images(prompt.images), prompt.layouts
    )
    return list(prompt.ids), assistant.model.language(inputs_embeds=embedded).logits[0]


@pytest.fixture
def made(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    vision_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> LlavaBundle:
    """A random assistant of the language family and aspect that the test names."""
    family, aspect = request.param
    shape = LANGUAGES[family]
    shape.update({"vocab_size": len(tokenizer)})
    torch.manual_seed(6)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    return assemble(vision_folder, tmp_path / "language", aspect=aspect, seed=3)


EVERY = [("llama", aspect) for aspect in ASPECTS] + [(name, "anyres") for name in [*LANGUAGES][1:]]


@pytest.mark.parametrize("made", EVERY, indirect=True, ids=lambda each: "-".join(each))
def test_logits_and_answers_are_transformers_own(
    tmp_path: Path, made: LlavaBundle, odd_images: list[Path]
) -> None:
    """Prompt ids are equal, logits to 1e-5 at every position, and all tokens of 50 greedy answers (8 but of LLaMA)."""
    save_model_folder(tmp_path / "m", made)
    ours, theirs = load_model_folder(tmp_path / "m"), Theirs(tmp_path / "m")
    generator = BatchGenerator(ours, DecodedImages(ours.processor))
    questions = asked(odd_images, 50 if ours.model.language.config.model_type == "llama" else 8)
    greedy = SamplingParams(max_new_tokens=NEW_TOKENS)
    for question in questions:
        inputs = theirs.inputs(question)
        ids, logits = our_logits(ours, question)
        with torch.no_grad():
            expected = theirs.model(**inputs).logits[0]
            answer = theirs.model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                suppress_tokens=generator._vocabulary.banned,
            )[0, len(ids) :]
        assert ids == inputs["input_ids"][0].tolist()
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        told = list(generator._generate_tokens([generator.prompt(question)], greedy))
        said = [token for [token] in told]
        assert said == answer.tolist()[: len(said)]
        assert len(said) == NEW_TOKENS or answer.tolist()[len(said)] == ours.tokenizer.eos_token_id
    assert {len(question.images) for question in questions} == {0, 1, 2, 3}


def dialogues(images: Sequence[Path]) -> list[Conversation]:
    """Return dialogues with 0 to 3 images and an answer."""
    return [
        replace(question, turns=(*question.turns, Turn("assistant", (f"a dog {number}",))))
        for number, question in enumerate(asked(images, 5))
    ]


def rows_of(assistant: LlavaBundle, conversations: Sequence[Conversation]) -> list[Sample]:
    """Encode dialogues."""
    maker = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=2048,
    )
    return [maker.build(conversation, Path()) for conversation in conversations]


def their_loss(
    theirs: Theirs, conversations: Sequence[Conversation], rows: Sequence[Sample]
) -> torch.Tensor:
    """Return transformers' loss on the same rows and labels, padded on the right."""
    shown = [open_image(Path(path)) for each in conversations for path in each.images]
    images = theirs.processor.image_processor(shown, return_tensors="pt")
    plain = padded(rows)
    loss: torch.Tensor = theirs.model(
        input_ids=plain.ids, attention_mask=plain.mask, labels=plain.labels, **images
    ).loss
    return loss


NAMES = {
    "projector.newline": "model.image_newline",
    "projector.": "model.multi_modal_projector.",
    "language.model.": "model.language_model.",
    "language.lm_head.": "lm_head.",
    "vision.tower.": "model.vision_tower.",
}
"""Ours and theirs, in memory."""


def their_name(name: str) -> str:
    """Return what transformers calls one of our weights."""
    ours = next(prefix for prefix in NAMES if name.startswith(prefix))
    return (NAMES[ours] + name.removeprefix(ours)).replace("vision_model.", "")


@pytest.mark.parametrize("made", EVERY, indirect=True, ids=lambda each: "-".join(each))
@pytest.mark.parametrize(
    "trains",
    [PRETRAIN.trainable, FINETUNE.trainable, ("vision", "projector", "language")],
    ids=len,
)
def test_loss_and_gradients_are_transformers_own(
    tmp_path: Path, made: LlavaBundle, odd_images: list[Path], trains: tuple[Part, ...]
) -> None:
    """Of a mixed batch, for stage 1, stage 2 and a trained tower: the loss, and the gradient of every weight."""
    save_model_folder(tmp_path / "m", made)
    ours, theirs = load_model_folder(tmp_path / "m"), Theirs(tmp_path / "m")
    set_trainable(ours.model, trains)
    told = dialogues(odd_images)
    rows = rows_of(ours, told)
    batch = batch_of(ours, rows)

    loss = ours.model.loss(batch)
    (loss.total / loss.num_tokens).backward()
    expected = their_loss(theirs, told, rows)
    expected.backward()

    assert int((padded(rows).labels != IGNORE_INDEX).sum()) == loss.num_tokens > 20
    assert loss.mean == pytest.approx(expected.item(), abs=TOLERANCE)
    wanted = {
        name.replace("vision_model.", ""): each for name, each in theirs.model.named_parameters()
    }
    moving = {name: each for name, each in ours.model.named_parameters() if each.requires_grad}
    compared = 0
    for name, weight in moving.items():
        if weight.grad is None:  # behind the layer that is taken
            assert wanted[their_name(name)].grad is None
            continue
        gradient = wanted[their_name(name)].grad
        assert gradient is not None
        torch.testing.assert_close(weight.grad, gradient, atol=TOLERANCE, rtol=1e-4)
        compared += 1
    assert compared >= (5 if ours.card.image_aspect == "anyres" else 4)
    assert compared >= 20 or trains == PRETRAIN.trainable


def test_a_small_image_is_tiled_as_the_original_does(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """Where two grids tie, the folder makes transformers choose the one that LLaVA chooses (spec 8.3)."""
    made = assemble(vision_folder, language_folder, aspect="anyres", seed=3)
    save_model_folder(tmp_path / "m", made)
    Image.new("RGB", (4, 5)).save(tmp_path / "small.png")
    question = Conversation(
        "q", (Turn("user", (ImageRef(str(tmp_path / "small.png")), "\nwhat?")),)
    )
    ids, _ = our_logits(made, question)
    assert made.processor.layout(tmp_path / "small.png").rows == 2
    assert Theirs(tmp_path / "m").inputs(question)["input_ids"][0].tolist() == ids


def their_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> Path:
    """Write a random model as transformers' users have it: LLaVA's, or LLaVA-NeXT's with grids that are no pairs."""
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<image>"], "pad_token": "<pad>"},
        replace_extra_special_tokens=False,
    )
    tiled = kind == "llava_next"
    torch.manual_seed(8)
    grids: dict[str, Any] = {"image_grid_pinpoints": [[6, 12], [12, 12], [18, 6]]}
    config: Any = (LlavaNextConfig if tiled else LlavaConfig)(
        vision_config=VISION,
        text_config=LlamaConfig(**{**WIDTHS, "vocab_size": 384}),
        image_token_index=tokenizer.get_vocab()["<image>"],
        **(grids if tiled else {}),
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(folder)
    sides: dict[str, Any] = {"size": {"shortest_edge": 6}, "crop_size": {"height": 6, "width": 6}}
    shared: dict[str, Any] = {
        "patch_size": 2,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    if tiled:
        pixels = LlavaNextImageProcessorPil(
            **sides, image_grid_pinpoints=config.image_grid_pinpoints
        )
        LlavaNextProcessor(pixels, tokenizer, **shared).save_pretrained(folder)
    else:
        LlavaProcessor(CLIPImageProcessorPil(**sides), tokenizer, **shared).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_a_folder_of_transformers_comes_in(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, odd_images: list[Path], kind: str
) -> None:
    """Imported, it reads the same prompts about the same images, and gives the logits that transformers gives."""
    folder = their_folder(tmp_path / "theirs", copy.deepcopy(tokenizer), kind)
    import_model(
        ImportRequest(source=folder, template="vicuna_v1"), tmp_path / "ours", NoProgress()
    )
    ours, theirs = load_model_folder(tmp_path / "ours"), Theirs(folder)
    for question in asked(odd_images, 20):
        inputs = theirs.inputs(question)
        ids, logits = our_logits(ours, question)
        with torch.no_grad():
            expected = theirs.model(**inputs).logits[0]
        assert ids == inputs["input_ids"][0].tolist()
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
