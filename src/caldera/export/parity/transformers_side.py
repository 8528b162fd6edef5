"""Transformers' side of a comparison: the same folder in its own LLaVA classes, with its own processor."""

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
    LlavaProcessor,
)
from transformers.image_utils import load_image

from caldera.errors import ModelFormatError
from caldera.export.parity.compare import COMPARED, ParityCase, StageOutputs
from caldera.formats.config import read_config
from caldera.formats.metadata import read_card
from caldera.images.processor import MAX_ASPECT_RATIO, ImageProcessor
from caldera.templates.jinja import chat_template
from caldera.templates.template import find_template
from caldera.templates.tokenization import start_ids

CLASSES: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaForConditionalGeneration, LlavaProcessor),
    "llava_next": (LlavaNextForConditionalGeneration, LlavaNextProcessor),
}
"""Model and processor by a config's `model_type`."""


class Transformers:
    """A model folder as transformers runs it."""

    name = "transformers"
    limits: Mapping[str, float] = dict.fromkeys(COMPARED, 1e-4)
    min_equal_answers = 1.0
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        """Load a model folder in fp32.

        Raises:
            ModelFolderError: Transformers cannot express the model, or cannot load the folder.
        """
        config = read_config(folder)
        kind = config.get("model_type")
        if kind not in CLASSES:
            reason = str(config.get("projector_hidden_act", "")).removeprefix("none, ")
            raise ModelFormatError(
                f"{folder}: transformers cannot express this model ({reason or kind}), so there is nothing to compare; "
                "caldera and llama.cpp can run it: --against gguf"
            )
        model, processor = CLASSES[kind]
        local = {"local_files_only": True}
        try:
            self._model = model.from_pretrained(folder, dtype=torch.float32, **local).eval()
            self._processor = processor.from_pretrained(folder, **local)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFormatError(f"transformers cannot load {folder}: {reason}") from None
        template = find_template(read_card(folder).template)
        starts = bool(start_ids(self._processor.tokenizer))
        self._template = chat_template(template, starts=starts)

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file by transformers' `load_image`."""
        return np.asarray(load_image(str(path)))

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Say where caldera enlarges only the part of a long image that is seen, which rounds a level otherwise."""
        if processor.aspect == "square" and max(size) > MAX_ASPECT_RATIO * min(size):
            return "caldera enlarges only the part of so long an image that is seen: a level of rounding"
        return None

    @torch.inference_mode()
    def run(self, image: Image.Image, shown: ParityCase) -> StageOutputs:
        """Go from a decoded RGB image to an answer; the prompt is written by caldera's chat template."""
        said = [{"type": "image"}, {"type": "text", "text": shown.question}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": said}], chat_template=self._template
        )
        inputs = self._processor(images=image, text=text, return_tensors="pt")
        caught: list[torch.Tensor] = []
        projector = self._model.model.multi_modal_projector
        hook = projector.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        seen = self._model(**inputs)
        hook.remove()
        answer = self._model.generate(**inputs, do_sample=False, max_new_tokens=shown.new_tokens)
        prompt = inputs["input_ids"][0].tolist()
        tokens = seen.image_hidden_states
        tokens = torch.cat(list(tokens)) if isinstance(tokens, list | tuple) else tokens
        return StageOutputs(
            inputs["pixel_values"].flatten(0, -4),
            caught[0],
            tokens.flatten(0, -2),
            tuple(prompt),
            seen.logits[0].float(),
            self._without_end(answer[0, len(prompt) :].tolist()),
        )

    def _without_end(self, ids: list[int]) -> tuple[int, ...]:
        """Cut the end mark and what is behind it."""
        ends = self._model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        return tuple(itertools.takewhile(lambda token: token not in ends, ids))
