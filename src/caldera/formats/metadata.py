"""`caldera.json`: what a model folder says of itself beyond what transformers' config can say."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from caldera.errors import ModelFormatError
from caldera.images.anyres import Size
from caldera.images.processor import ImageAspect
from caldera.model.vision_tower import FeatureSelect

METADATA_FILE = "caldera.json"


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


def read_card(folder: Path) -> ModelMetadata:
    """Read a folder's card.

    Raises:
        ModelFolderError: It is missing, broken, or holds what it should not.
    """
    try:
        return ModelMetadata.model_validate_json((folder / METADATA_FILE).read_bytes())
    except FileNotFoundError:
        if (folder / "adapter_config.json").is_file():
            raise ModelFormatError(
                f"{folder} is an adapter, which says nothing without its base; merge the two: caldera train merge "
                f"{folder} --model BASE --out FOLDER"
            ) from None
        raise ModelFormatError(
            f"{folder} has no {METADATA_FILE}, so it is not a caldera model folder; check the path"
        ) from None
    except OSError as error:
        raise ModelFormatError(f"cannot read {folder / METADATA_FILE}: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(step) for step in fault["loc"]) or "file"
        raise ModelFormatError(
            f"{folder / METADATA_FILE}: {field}: {fault['msg'].lower()}"
        ) from None
