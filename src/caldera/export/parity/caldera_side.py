"""Caldera's own side of a comparison: an assistant in, what it makes of an image and a question out."""

from collections.abc import Sequence

import torch
from PIL import Image

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.export.parity.compare import ParityCase, StageOutputs
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.prompts import FilePrompt
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from caldera.model.llava import order_image_tokens


class Caldera:
    """An assistant that shows its work."""

    def __init__(self, assistant: LlavaBundle) -> None:
        """Show how `assistant`, in fp32, comes to its answers."""
        self._assistant = assistant
        self._source = DecodedImages(assistant.processor)
        self._generator = BatchGenerator(assistant, self._source)

    def _prompt(self, shown: ParityCase) -> FilePrompt:
        parts = (ImageRef(str(shown.path)), f"\n{shown.question}")
        return self._generator.prompt(Conversation("parity", (Turn("user", parts),)))

    @torch.inference_mode()
    def run(self, image: Image.Image, shown: ParityCase) -> StageOutputs:
        """Go from a decoded RGB image to an answer."""
        model = self._assistant.model
        prompt = self._prompt(shown)
        pixels = self._source(prompt.images)  # (views, channels, side, side)
        features = model.patch_features(pixels)  # (views, patches, vision width)
        projected = model.projector(features)  # (views, patches, width)
        return StageOutputs(
            pixels,
            features,
            order_image_tokens(projected, prompt.layouts, model.projector.image_newline),
            prompt.ids,
            self._logits(prompt, ()),
            tuple(
                self._generator.generate_ids(
                    prompt, SamplingParams(max_new_tokens=shown.new_tokens)
                )
            ),
        )

    def _logits(self, prompt: FilePrompt, answer: Sequence[int]) -> torch.Tensor:
        """Return the logits at every position of a prompt and the start of its answer, (tokens, vocabulary)."""
        model = self._assistant.model
        ids = torch.tensor([[*prompt.ids, *answer]])
        embedded = model.embed(ids, self._source(prompt.images), prompt.layouts)
        return model.language(inputs_embeds=embedded, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def margin(self, shown: ParityCase, answer: Sequence[int], ours: int, theirs: int) -> float:
        """Return by how many logits `ours` is likelier than `theirs` after `answer`."""
        last = self._logits(self._prompt(shown), answer)[-1]  # (vocabulary,)
        return float(last[ours] - last[theirs])

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids."""
        return str(self._assistant.tokenizer.decode(list(ids), skip_special_tokens=True))
