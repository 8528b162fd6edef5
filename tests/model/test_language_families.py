"""Language models of every family are joined, trained, saved, and loaded here and by transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)

from caldera.batches.samples import SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import DeviceConfig
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.anyres import ASPECTS, ImageAspect
from caldera.inference.sampling import SamplingParams
from caldera.templates.registry import find_template
from caldera.training.step import training_step
from tests.engine_answers import generate
from tests.laying import batch_of
from tests.tiny_languages import LANGUAGES

CONVERSATION = Conversation(
    "c",
    (
        Turn("user", (ImageRef("1.png"), ImageRef("4.png"), "what do you see?")),
        Turn("assistant", ("a cat",)),
    ),
)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("family", LANGUAGES)
def test_a_language_model_of_any_family_can_be_trained_and_saved(
    tmp_path: Path,
    vision_folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    photos: Path,
    family: str,
    aspect: ImageAspect,
) -> None:
    """A step lowers the loss; the saved model gives the same answer, and transformers loads all its weights."""
    shape = LANGUAGES[family]
    shape.update({"vocab_size": len(tokenizer)})
    torch.manual_seed(6)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "language")
    tokenizer.save_pretrained(tmp_path / "language")
    trained = assemble(vision_folder, tmp_path / "language", aspect=aspect, seed=3)
    builder = SampleBuilder(
        tokenizer=trained.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=trained.model.image_token_id,
        layouts=trained.processor.layouts,
        count_tokens=trained.model.count_tokens,
        max_length=500,
    )
    sample = builder.build(CONVERSATION, photos)
    batch = batch_of(trained, [sample])
    optimizer = torch.optim.SGD(trained.model.parameters(), 0.1)

    losses = [
        training_step(
            trained.model,
            [batch],
            optimizer,
            max_grad_norm=1.0,
            compute=DeviceConfig(torch.device("cpu"), torch.float32),
        ).loss
        for _ in range(3)
    ]

    assert losses[2] < losses[0]
    save_model_folder(tmp_path / "m", trained)
    answers = []
    for assistant in (trained, load_model_folder(tmp_path / "m")):
        question = Conversation("q", CONVERSATION.turns[:1])
        answers.append(generate(assistant, [question], photos, SamplingParams(max_new_tokens=5)))
    assert answers[0] == answers[1]
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert loaded[1]["missing_keys"] == loaded[1]["unexpected_keys"] == set()
