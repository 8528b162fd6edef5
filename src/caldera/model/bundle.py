"""A LLaVA model with its tokenizer, image processor and metadata."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedTokenizerFast

from caldera.datasets.origins import TrainingSet
from caldera.images.anyres import ImageAspect, Size, TileLayout
from caldera.images.processor import ImageProcessor
from caldera.model.llava import Llava
from caldera.model.vision_tower import FeatureSelect
from caldera.templates.registry import find_template


class ModelMetadata(BaseModel):
    """Settings needed to use a model, and its provenance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    projector: str = "mlp2x_gelu"
    """Name of the projector."""

    vision_feature_layer: int = -2
    """Hidden state of the vision tower that is projected."""

    feature_select: FeatureSelect = "patch"
    """Whether the class token is among the features."""

    image_aspect: ImageAspect = "square"
    """Preparation of images that are not square."""

    pinpoints: tuple[Size, ...] = ()
    """Sizes, (width, height), of the canvases that `anyres` cuts into tiles; empty for the other aspects."""

    anyres_max: int | None = Field(default=None, ge=1)
    """Tiles of `anyres` to whose number of tokens an image is scaled down, as in `ImageProcessor`."""

    template: str = "vicuna_v1"
    """Chat template."""

    stage: str | None = None
    """Training stage that wrote the folder; None for an untrained model."""

    recipe: dict[str, Any] = Field(default_factory=dict)
    """Every setting of each training stage, by its name."""

    data: dict[str, TrainingSet] = Field(default_factory=dict)
    """Data file of each training stage, by its name."""

    source_digests: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the folders and files that the model was made from."""

    sources: dict[str, str] = Field(default_factory=dict)
    """Where they are from, by role: ORG/NAME@COMMIT on the Hugging Face Hub, else the name of the folder."""

    metrics: dict[str, float] = Field(default_factory=dict)
    """Losses at the end of the stage."""

    @model_validator(mode="after")
    def _check_pinpoints(self) -> Self:
        """Check that `anyres` has pinpoints, and no other aspect."""
        if (self.image_aspect == "anyres") != bool(self.pinpoints):
            raise ValueError("pinpoints go with the aspect 'anyres', and it needs some")
        if self.image_aspect != "anyres" and self.anyres_max is not None:
            raise ValueError("anyres_max goes with the aspect 'anyres'")
        if self.image_aspect == "anyres" and self.feature_select != "patch":
            raise ValueError(
                "the aspect 'anyres' supports patches only; feature_select must be 'patch'"
            )
        return self


@dataclass(frozen=True, slots=True)
class LlavaBundle:
    """A model with everything needed to use it."""

    model: Llava
    tokenizer: PreTrainedTokenizerFast
    processor: ImageProcessor
    card: ModelMetadata

    def layouts(self, paths: Iterable[Path]) -> tuple[TileLayout, ...]:
        """Return the tile layout of each image of a conversation.

        Raises:
            ImageError: The layout depends on the size of an image that cannot be read.
        """
        return self.processor.layouts(tuple(paths))

    def image_tokens(self, layouts: Iterable[TileLayout]) -> list[int]:
        """Return the number of tokens of each image."""
        return [self.model.count_tokens(layout) for layout in layouts]


def eos_token_ids(assistant: LlavaBundle) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and the template's own where it has one."""
    tokenizer = assistant.tokenizer
    end_token = find_template(assistant.card.template).end_token
    template_id = tokenizer.backend_tokenizer.token_to_id(end_token) if end_token else None
    candidates = dict.fromkeys([tokenizer.eos_token_id, template_id])
    return [token_id for token_id in candidates if token_id is not None]
