"""References: what each name of an object or an image in a document refers to, for a second loss.

From the hidden state of a name in a question, a linear layer predicts the position of the object, the number of such
objects in each image, and the setting of the image; from a bag, the number of such objects in the images so far.
So names find what they refer to, and layers above can compare.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast

from backbones.quizzes import count_objects, single_objects
from caldera.annotations.english import plural
from caldera.conversation import LETTERS
from caldera.scenes.scene import BACKGROUNDS, OBJECT_KINDS, Scene

MAX_SCENES = 3
"""Maximal number of scenes in a document with references."""

_STD = 0.2
"""Standard deviation of centers, as fractions of the image."""

_NUM_VALUES = 2 + MAX_SCENES
"""Values of an object's name: center across and down, and the numbers of such objects."""

Reference = tuple[float, ...]
"""Center across and down in standard deviations, numbers of objects, index of the setting; NaN is not predicted."""

NO_REFERENCE: Reference = (math.nan,) * (_NUM_VALUES + 1)


@dataclass(frozen=True, slots=True)
class ReferenceTable:
    """The tokens that are names of kinds, settings or images."""

    kinds: dict[int, str]
    settings: frozenset[int]
    images: dict[int, int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "ReferenceTable":
        """Collect the names of one token, singular and plural."""
        kinds = {
            token: name
            for name in OBJECT_KINDS
            for noun in (name, plural(name))
            if (token := _single_token(tokenizer, noun)) is not None
        }
        images = {
            token: number
            for number, letter in enumerate(LETTERS[:MAX_SCENES])
            if (token := _single_token(tokenizer, letter)) is not None
        }
        settings = (_single_token(tokenizer, name) for name in BACKGROUNDS)
        return cls(kinds, frozenset(token for token in settings if token is not None), images)

    def bag_references(
        self, bags: Sequence[Sequence[int]], scenes: Sequence[Scene]
    ) -> list[Reference]:
        """Return the reference of each bag of the last of the scenes, to it and those before.

        For the kind of an object the number in each scene, for a setting whether each scene has it.
        """
        counts = [count_objects(scene) for scene in scenes]
        same_setting = [float(scene.setting == scenes[-1].setting) for scene in scenes]
        references = []
        for bag in bags:
            values = list(NO_REFERENCE)
            kind = next((self.kinds[token] for token in bag if token in self.kinds), None)
            if kind:
                values[2 : 2 + len(scenes)] = [float(names.get(kind, 0)) for names in counts]
            elif self.settings.intersection(bag):
                values[2 : 2 + len(scenes)] = same_setting
            references.append(tuple(values))
        return references

    def references(self, tokens: Sequence[int], scenes: Sequence[Scene]) -> list[Reference]:
        """Return the reference of each token about described scenes."""
        counts = [count_objects(scene) for scene in scenes]
        boxes = single_objects(scenes[0]) if len(scenes) == 1 else {}
        settings = list(BACKGROUNDS)
        references = []
        for token in tokens:
            values = list(NO_REFERENCE)
            if kind := self.kinds.get(token):
                if kind in boxes:
                    values[:2] = [(value - 0.5) / _STD for value in boxes[kind].center]
                values[2 : 2 + len(counts)] = [float(names.get(kind, 0)) for names in counts]
            elif len(scenes) > 1 and self.images.get(token, MAX_SCENES) < len(scenes):
                scene = scenes[self.images[token]]
                values[-1] = float(settings.index(scene.setting))
            references.append(tuple(values))
        return references


def _single_token(tokenizer: PreTrainedTokenizerFast, word: str) -> int | None:
    tokens = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return tokens[0] if len(tokens) == 1 else None


class ReferenceHead(nn.Module):
    """Linear layers on a hidden state, discarded after the training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.values = nn.Linear(width, _NUM_VALUES)
        self.settings = nn.Linear(width, len(BACKGROUNDS))

    def forward(self, hidden: Tensor, references: Tensor) -> Tensor:
        """Return the loss of hidden states, (rows, tokens, width), for references, (rows, tokens, values)."""
        hidden = self.norm(hidden.float())
        targets, settings = references[..., :_NUM_VALUES], references[..., -1]
        is_known = ~targets.isnan()  # (rows, tokens, values)
        errors = (self.values(hidden) - targets.nan_to_num()).square() * is_known
        squares = errors.sum(dim=(0, 1)) / is_known.sum(dim=(0, 1)).clamp(min=1)  # (values,)
        is_image = ~settings.isnan()  # (rows, tokens)
        if not is_image.any():
            return squares.mean()
        logits = self.settings(hidden[is_image])  # (images, settings)
        return squares.mean() + cross_entropy(logits, settings[is_image].long()) / 2
