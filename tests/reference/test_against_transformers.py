"""Equality with transformers' LLaVA and LLaVA-NeXT on the same folder: logits, answers, loss, gradients, in fp32.

Images are decoded by caldera (upright, transparent pixels on white), which transformers leaves to its users.
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
from caldera.images.anyres import ASPECTS
from caldera.images.decoding import open_image
from caldera.inference.detokenizer import TokenIds
from caldera.inference.prompts import PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import IGNORE_INDEX
from caldera.templates.registry import VICUNA_SYSTEM, find_template
from caldera.training.hyperparameters import FINETUNE, PRETRAIN, Part
from caldera.training.parameters import set_trainable
from tests.engine_answers import generate_ids
from tests.laying import batch_of, padded
from tests.tiny_languages import LANGUAGES, WIDTHS
from tests.tiny_onevision import load_in_transformers

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
    """Unusual images: a line, a column, a dot, grayscale, transparent, rotated, wide, tall."""
    rng = np.random.default_rng(7)

    def noise(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    clear = noise(23, 11).convert("RGBA")
    clear.putalpha(noise(23, 11).convert("L"))
    images: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "line.png": (noise(1000, 1), {}),
        "column.png": (noise(1, 1000), {}),
        "dot.png": (noise(1, 1), {}),
        "grey.png": (noise(17, 29).convert("L"), {}),
        "clear.png": (clear, {}),
        "turned.jpg": (noise(31, 13), {"exif": turned}),
        "wide.webp": (noise(61, 7), {"lossless": True}),
        "tall.png": (noise(5, 41), {}),
    }
    for name, (image, options) in images.items():
        image.save(tmp_path / name, **options)
    return [tmp_path / name for name in images]


def build_questions(images: Sequence[Path], count: int) -> list[Conversation]:
    """Return questions about 0, 1, 2 or 3 of the images, in turn."""
    words = (
        "what is there?",
        "how many dogs are on the left?",
        "yes or no: a bird",
        "what? where? how many?",
    )
    questions = []
    for number in range(count):
        paths = [images[(number + step * 3) % len(images)] for step in range(number % 4)]
        text = f"{words[number % 3]} " * (1 + number % 5)
        parts: tuple[str | ImageRef, ...] = (
            *(ImageRef(str(path)) for path in paths),
            f"\n{text}x" if paths else f"{text}x",
        )
        questions.append(Conversation(str(number), (Turn("user", parts),)))
    return questions


class Reference:
    """A model folder in transformers' own class and processor."""

    def __init__(self, folder: Path) -> None:
        self.model = load_in_transformers(folder)
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, conversation: Conversation) -> Any:  # noqa: ANN401 - transformers' own
        """Return the processor's output for a question."""
        text = "".join(
            "<image>" if isinstance(part, ImageRef) else part
            for part in conversation.turns[0].parts
        )
        images = [open_image(Path(path)) for path in conversation.images]
        prompt = f"{VICUNA_SYSTEM} USER: {text} ASSISTANT:"
        return self.processor(images=images or None, text=prompt, return_tensors="pt")


@torch.no_grad()
def caldera_logits(
    assistant: LlavaBundle, conversation: Conversation
) -> tuple[list[int], torch.Tensor]:
    """Return caldera's prompt ids and logits, (tokens, vocabulary)."""
    images = DecodedImages(assistant.processor)
    prompt = PromptBuilder(assistant).from_files(conversation)
    embedded = assistant.model.embed(
        torch.tensor([prompt.ids]), images(prompt.images), prompt.layouts
    )
    return list(prompt.ids), assistant.model.language(inputs_embeds=embedded).logits[0]


@pytest.fixture
def bundle(
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


@pytest.mark.parametrize("bundle", EVERY, indirect=True, ids="-".join)
def test_logits_and_answers_equal_those_of_transformers(
    tmp_path: Path, bundle: LlavaBundle, odd_images: list[Path]
) -> None:
    """Prompt ids are equal, logits to 1e-5 at every position, and all tokens of 50 greedy answers (8 but of LLaMA)."""
    save_model_folder(tmp_path / "m", bundle)
    assistant, reference = load_model_folder(tmp_path / "m"), Reference(tmp_path / "m")
    questions = build_questions(
        odd_images, 50 if assistant.model.language.config.model_type == "llama" else 8
    )
    greedy = SamplingParams(max_new_tokens=NEW_TOKENS)
    for question in questions:
        inputs = reference.inputs(question)
        ids, logits = caldera_logits(assistant, question)
        with torch.no_grad():
            expected = reference.model(**inputs).logits[0]
            answer = reference.model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                suppress_tokens=TokenIds(assistant).banned,
            )[0, len(ids) :]
        assert ids == inputs["input_ids"][0].tolist()
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
        [tokens] = generate_ids(assistant, [question], sampling=greedy)
        assert list(tokens) == answer.tolist()[: len(tokens)]
        assert (
            len(tokens) == NEW_TOKENS
            or answer.tolist()[len(tokens)] == assistant.tokenizer.eos_token_id
        )
    assert {len(question.images) for question in questions} == {0, 1, 2, 3}


def dialogues(images: Sequence[Path]) -> list[Conversation]:
    """Return dialogues with 0 to 3 images and an answer."""
    return [
        replace(question, turns=(*question.turns, Turn("assistant", (f"a dog {number}",))))
        for number, question in enumerate(build_questions(images, 5))
    ]


def rows_of(assistant: LlavaBundle, conversations: Sequence[Conversation]) -> list[Sample]:
    """Encode dialogues."""
    maker = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layouts=assistant.processor.layouts,
        count_tokens=assistant.model.count_tokens,
        max_length=2048,
    )
    return [maker.build(conversation, Path()) for conversation in conversations]


def reference_loss(
    reference: Reference, conversations: Sequence[Conversation], rows: Sequence[Sample]
) -> torch.Tensor:
    """Return transformers' loss on the same rows and labels, padded on the right."""
    images = [open_image(Path(path)) for dialogue in conversations for path in dialogue.images]
    image_inputs = reference.processor.image_processor(images, return_tensors="pt")
    plain = padded(rows)
    loss: torch.Tensor = reference.model(
        input_ids=plain.ids, attention_mask=plain.mask, labels=plain.labels, **image_inputs
    ).loss
    return loss


NAMES = {
    "projector.image_newline": "model.image_newline",
    "projector.": "model.multi_modal_projector.",
    "language.model.": "model.language_model.",
    "language.lm_head.": "lm_head.",
    "vision.tower.": "model.vision_tower.",
}
"""Prefixes of weight names in caldera, and in transformers."""


def reference_name(name: str) -> str:
    """Return transformers' name of one of caldera's weights."""
    prefix = next(prefix for prefix in NAMES if name.startswith(prefix))
    return (NAMES[prefix] + name.removeprefix(prefix)).replace("vision_model.", "")


@pytest.mark.parametrize("bundle", EVERY, indirect=True, ids="-".join)
@pytest.mark.parametrize(
    "trains",
    [PRETRAIN.trainable, FINETUNE.trainable, ("vision", "projector", "language")],
    ids=len,
)
def test_loss_and_gradients_equal_those_of_transformers(
    tmp_path: Path, bundle: LlavaBundle, odd_images: list[Path], trains: tuple[Part, ...]
) -> None:
    """On a mixed batch, for stage 1, stage 2 and a trainable tower: the loss, and the gradient of every weight."""
    save_model_folder(tmp_path / "m", bundle)
    assistant, reference = load_model_folder(tmp_path / "m"), Reference(tmp_path / "m")
    set_trainable(assistant.model, trains)
    conversations = dialogues(odd_images)
    rows = rows_of(assistant, conversations)
    batch = batch_of(assistant, rows)

    loss = assistant.model(batch)
    (loss.total / loss.num_tokens).backward()
    expected = reference_loss(reference, conversations, rows)
    expected.backward()

    assert int((padded(rows).labels != IGNORE_INDEX).sum()) == loss.num_tokens > 20
    assert loss.mean == pytest.approx(expected.item(), abs=TOLERANCE)
    reference_weights = {
        name.replace("vision_model.", ""): weight
        for name, weight in reference.model.named_parameters()
    }
    trainable = {
        name: weight for name, weight in assistant.model.named_parameters() if weight.requires_grad
    }
    compared = 0
    for name, weight in trainable.items():
        # Layers after the feature layer get no gradient.
        if weight.grad is None:
            assert reference_weights[reference_name(name)].grad is None
            continue
        gradient = reference_weights[reference_name(name)].grad
        assert gradient is not None
        torch.testing.assert_close(weight.grad, gradient, atol=TOLERANCE, rtol=1e-4)
        compared += 1
    assert compared >= (5 if assistant.card.image_aspect == "anyres" else 4)
    assert compared >= 20 or trains == PRETRAIN.trainable


def test_a_small_image_is_tiled_as_the_original_does(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """If two grids tie, the folder makes transformers choose the one that LLaVA chooses."""
    bundle = assemble(vision_folder, language_folder, aspect="anyres", seed=3)
    save_model_folder(tmp_path / "m", bundle)
    Image.new("RGB", (4, 5)).save(tmp_path / "small.png")
    question = Conversation(
        "q", (Turn("user", (ImageRef(str(tmp_path / "small.png")), "\nwhat?")),)
    )
    ids, _ = caldera_logits(bundle, question)
    assert bundle.processor.layouts([tmp_path / "small.png"])[0].rows == 2
    assert Reference(tmp_path / "m").inputs(question)["input_ids"][0].tolist() == ids


def write_transformers_folder(folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> Path:
    """Write a random model with transformers: LLaVA, or LLaVA-NeXT with grids that are not symmetric."""
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
def test_a_folder_of_transformers_is_imported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, odd_images: list[Path], kind: str
) -> None:
    """The imported model has the same prompt ids and logits as transformers."""
    folder = write_transformers_folder(tmp_path / "transformers", copy.deepcopy(tokenizer), kind)
    import_model(
        ImportRequest(source=folder, template="vicuna_v1"), tmp_path / "caldera", NoProgress()
    )
    assistant, reference = load_model_folder(tmp_path / "caldera"), Reference(folder)
    for question in build_questions(odd_images, 20):
        inputs = reference.inputs(question)
        ids, logits = caldera_logits(assistant, question)
        with torch.no_grad():
            expected = reference.model(**inputs).logits[0]
        assert ids == inputs["input_ids"][0].tolist()
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)
