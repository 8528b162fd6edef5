"""Transformers' side of a comparison: its own LLaVA classes and processor on the same folder."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import load_image

from caldera.errors import ModelFormatError
from caldera.export.parity.compare import COMPARED, ParityCase, StageOutputs, long_image_difference
from caldera.formats.config import read_config
from caldera.formats.onevision_processor import LlavaOnevisionProcessor
from caldera.images.processor import ImageProcessor
from caldera.templates.jinja import chat_template, spaces_images
from caldera.templates.registry import find_template
from caldera.templates.tokenization import start_ids

CLASSES: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "llava_next": (LlavaNextForConditionalGeneration, LlavaNextProcessor),
    "llava_onevision": (LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor),
}
"""Model and processor classes by a config's `model_type`."""


class Transformers:
    """A model folder loaded by transformers."""

    name = "transformers"
    limits: Mapping[str, float] = dict.fromkeys(COMPARED, 1e-4)
    min_equal_answers = 1.0
    vocab_size = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, template: str) -> None:
        """Load a model folder in fp32, and use the chat template with this name."""
        config = read_config(folder)
        model_type = config.get("model_type")
        if model_type not in CLASSES:
            reason = str(config.get("projector_hidden_act", "")).removeprefix("none, ")
            raise ModelFormatError(
                f"{folder}: transformers cannot express this model ({reason or model_type}), so there is nothing to "
                "compare; caldera and llama.cpp can run it: --against gguf"
            )
        model_class, processor_class = CLASSES[model_type]
        options = {"local_files_only": True}
        try:
            self._model = model_class.from_pretrained(folder, dtype=torch.float32, **options).eval()
            self._processor = processor_class.from_pretrained(folder, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFormatError(f"transformers cannot load {folder}: {reason}") from None
        chosen, tokenizer = find_template(template), self._processor.tokenizer
        self._template = chat_template(
            chosen,
            starts=bool(start_ids(tokenizer)),
            spaces_images=spaces_images(chosen, tokenizer),
        )

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file with transformers' `load_image`."""
        return np.asarray(load_image(str(path)))

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Describe the rounding of long images."""
        return long_image_difference(size, processor)

    @torch.inference_mode()
    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages from a decoded RGB image to an answer, with caldera's chat template."""
        content = [{"type": "image"}, {"type": "text", "text": case.question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=self._template
        )
        inputs = self._processor(images=image, text=text, return_tensors="pt")
        features: list[torch.Tensor] = []
        projector = self._model.model.multi_modal_projector
        hook = projector.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
        outputs = self._model(**inputs)
        hook.remove()
        answer = self._model.generate(**inputs, do_sample=False, max_new_tokens=case.new_tokens)
        prompt = inputs["input_ids"][0].tolist()
        tokens = outputs.image_hidden_states
        tokens = torch.cat(list(tokens)) if isinstance(tokens, list | tuple) else tokens
        return StageOutputs(
            inputs["pixel_values"].flatten(0, -4),
            features[0],
            tokens.flatten(0, -2),
            tuple(prompt),
            outputs.logits[0].float(),
            self._without_end(answer[0, len(prompt) :].tolist()),
        )

    def _without_end(self, ids: list[int]) -> tuple[int, ...]:
        """Return the ids before the end token."""
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return tuple(itertools.takewhile(lambda token: token not in ends, ids))
