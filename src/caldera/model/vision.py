"""Pixels in, patch features out: any vision tower that transformers knows."""

from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

Select = Literal["patch", "cls_patch"]


class VisionTower(nn.Module):
    """A tower, the layer whose output LLaVA takes, and whether the class token is kept."""

    def __init__(
        self, tower: PreTrainedModel, select_layer: int = -2, select: Select = "patch"
    ) -> None:
        """Wrap `tower`; by default take the layer before the last and drop the class token, as LLaVA does."""
        super().__init__()
        self.tower = tower
        self.select_layer = select_layer
        self.select = select

    @property
    def side(self) -> int:
        """Pixels along each side of its input."""
        return int(self.tower.config.image_size)

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.tower.config.hidden_size)

    @property
    def image_tokens(self) -> int:
        """Features that one picture becomes."""
        patches = (self.side // int(self.tower.config.patch_size)) ** 2
        return patches + (self.select == "cls_patch")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of `pixels`, (images, channels, height, width), as (images, patches, vision width)."""
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        chosen = states[self.select_layer]  # (images, 1 + patches, vision width)
        return chosen if self.select == "cls_patch" else chosen[:, 1:]
