"""Caldera's own side of a comparison."""

from collections.abc import Sequence

import torch
from PIL import Image

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.export.parity.compare import ParityCase, StageOutputs
from caldera.inference.engine import Engine, Request, offline_config
from caldera.inference.prompts import FilePrompt, PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.model.llava import order_image_tokens


class Caldera:
    """An assistant in fp32 that returns the output of every stage."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Use `assistant`."""
        self._assistant = assistant
        self._source = DecodedImages(assistant.processor)
        self._prompt_builder = PromptBuilder(assistant)

    def _prompt(self, case: ParityCase) -> FilePrompt:
        parts = (ImageRef(str(case.path)), f"\n{case.question}")
        return self._prompt_builder.from_files(Conversation("parity", (Turn("user", parts),)))

    @torch.inference_mode()
    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages from a decoded RGB image to an answer."""
        model = self._assistant.model
        prompt = self._prompt(case)
        pixels = self._source(prompt.images, prompt.layouts)  # (views, channels, side, side)
        features = model.patch_features(pixels)  # (views, patches, vision width)
        projected = model.projector(features)  # (views, patches, width)
        return StageOutputs(
            pixels,
            features,
            order_image_tokens(projected, prompt.layouts, model.projector.image_newline),
            prompt.ids,
            self._logits(prompt, ()),
            self._answer_ids(prompt, case.new_tokens),
        )

    def _answer_ids(self, prompt: FilePrompt, max_new_tokens: int) -> tuple[int, ...]:
        """Return the tokens of the greedy answer, without the end token."""
        sampling = SamplingParams(max_new_tokens=max_new_tokens, ignore_template_stop=True)
        with Engine(self._assistant, offline_config(1)) as engine:
            [stream] = engine.submit_batch([Request(prompt.load(self._source), sampling)])
            return tuple(token for piece in stream for token in piece.tokens)

    def _logits(self, prompt: FilePrompt, answer: Sequence[int]) -> torch.Tensor:
        """Return the logits at every position of a prompt and the start of its answer, (tokens, vocabulary)."""
        model = self._assistant.model
        ids = torch.tensor([[*prompt.ids, *answer]])
        embedded = model.embed(ids, self._source(prompt.images, prompt.layouts), prompt.layouts)
        return model.language(inputs_embeds=embedded, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def margin(self, case: ParityCase, answer: Sequence[int], first: int, second: int) -> float:
        """Return the logit of the token `first` minus that of `second` after the start of an answer."""
        last = self._logits(self._prompt(case), answer)[-1]  # (vocabulary,)
        return float(last[first] - last[second])

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids."""
        return str(self._assistant.tokenizer.decode(list(ids), skip_special_tokens=True))
