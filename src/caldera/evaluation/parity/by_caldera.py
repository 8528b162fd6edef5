"""Caldera's own side of a comparison: an assistant in, what it makes of a picture and a question out."""

from collections.abc import Sequence

import torch
from PIL import Image

from caldera.batches.picture_sources import Pixels
from caldera.conversation import Conversation, Picture, Turn
from caldera.evaluation.parity.comparing import Seen, Shown
from caldera.inference.generate import Generator
from caldera.inference.prompts import PathPrompt
from caldera.inference.sampling import Sampling
from caldera.model.folder import Assistant
from caldera.model.splice import in_order


class Caldera:
    """An assistant that shows its work."""

    def __init__(self, assistant: Assistant) -> None:
        """Show how `assistant`, in fp32, comes to its answers."""
        self._assistant = assistant
        self._source = Pixels(assistant.processor)
        self._generator = Generator(assistant, self._source)

    def _prompt(self, shown: Shown) -> PathPrompt:
        parts = (Picture(str(shown.path)), f"\n{shown.question}")
        return self._generator.prompt(Conversation("parity", (Turn("user", parts),)))

    @torch.inference_mode()
    def see(self, picture: Image.Image, shown: Shown) -> Seen:
        """Go from a decoded RGB picture to an answer."""
        model = self._assistant.model
        prompt = self._prompt(shown)
        pixels = self._source(prompt.pictures)  # (views, channels, side, side)
        features = model.patch_features(pixels)  # (views, patches, vision width)
        projected = model.projector(features)  # (views, patches, width)
        return Seen(
            pixels,
            features,
            in_order(projected, prompt.layouts, model.projector.newline),
            prompt.ids,
            self._logits(prompt, ()),
            tuple(self._generator.answer_ids(prompt, Sampling(max_new_tokens=shown.new_tokens))),
        )

    def _logits(self, prompt: PathPrompt, answer: Sequence[int]) -> torch.Tensor:
        """Return the logits at every position of a prompt and the start of its answer, (tokens, vocabulary)."""
        model = self._assistant.model
        ids = torch.tensor([[*prompt.ids, *answer]])
        embedded = model.embed(ids, self._source(prompt.pictures), prompt.layouts)
        return model.language(inputs_embeds=embedded, use_cache=False).logits[0].float()

    @torch.inference_mode()
    def margin(self, shown: Shown, answer: Sequence[int], ours: int, theirs: int) -> float:
        """Return by how many logits `ours` is likelier than `theirs` after `answer`."""
        last = self._logits(self._prompt(shown), answer)[-1]  # (vocabulary,)
        return float(last[ours] - last[theirs])

    def text(self, ids: Sequence[int]) -> str:
        """Decode token ids."""
        return str(self._assistant.tokenizer.decode(list(ids), skip_special_tokens=True))
