"""Model, tokenizer and image processor with their metadata."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import (
    PreTrainedTokenizerFast,
)

from caldera.images.anyres import Size, TileLayout
from caldera.images.processor import ImageAspect, ImageProcessor
from caldera.model.llava import Llava
from caldera.model.vision_tower import FeatureSelect
from caldera.templates.template import find_template


class ModelMetadata(BaseModel):
    """How a model is to be used, and where it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    projector: str = "mlp2x_gelu"
    """Kind of projector."""

    vision_feature_layer: int = -2
    """Hidden state of the vision tower that is projected."""

    feature_select: FeatureSelect = "patch"
    """Whether the class token is among the features."""

    image_aspect: ImageAspect = "square"
    """How an image that is not square is shown."""

    pinpoints: tuple[Size, ...] = ()
    """Sizes, (width, height), of the canvases that `anyres` cuts into tiles; none for the other aspects."""

    template: str = "vicuna_v1"
    """How a conversation is written for the language model."""

    stage: str | None = None
    """The stage that wrote the folder; None where the parts were only joined."""

    recipe: dict[str, Any] = Field(default_factory=dict)
    """Every setting of that stage."""

    source_digests: dict[str, str] = Field(default_factory=dict)
    """sha256 of the folders and files it was made from, by what they are."""

    metrics: dict[str, float] = Field(default_factory=dict)
    """Losses at the end of the stage."""

    @model_validator(mode="after")
    def _tiles_are_whole(self) -> Self:
        """Check that what `anyres` needs is there, and only then."""
        if (self.image_aspect == "anyres") != bool(self.pinpoints):
            raise ValueError("pinpoints go with the aspect 'anyres', and it needs some")
        if self.image_aspect == "anyres" and self.feature_select != "patch":
            raise ValueError("the aspect 'anyres' lays patches only, so select must be 'patch'")
        return self


@dataclass(frozen=True, slots=True)
class LlavaBundle:
    """A model with everything needed to use it."""

    model: Llava
    tokenizer: PreTrainedTokenizerFast
    processor: ImageProcessor
    card: ModelMetadata

    def layouts(self, paths: Iterable[Path]) -> tuple[TileLayout, ...]:
        """Return how images are shown.

        Raises:
            ImageError: The size of one counts, but cannot be read.
        """
        return tuple(self.processor.layout(path) for path in paths)

    def image_tokens(self, layouts: Iterable[TileLayout]) -> list[int]:
        """Return how many tokens each image becomes."""
        return [self.model.count_tokens(layout) for layout in layouts]


def eos_token_ids(assistant: LlavaBundle) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's end mark, and the template's own where it has one."""
    tokenizer = assistant.tokenizer
    special = find_template(assistant.card.template).end_token
    own = tokenizer.backend_tokenizer.token_to_id(special) if special else None
    return [end for end in dict.fromkeys([tokenizer.eos_token_id, own]) if end is not None]
