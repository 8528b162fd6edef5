"""Pixels in, patch features out: any vision tower of transformers that turns squares of an image into positions."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError

FeatureSelect = Literal["patch", "cls_patch"]

_AXES = 3
"""Of features: views, positions, vision width."""


class VisionTower(nn.Module):
    """A tower, the layer whose output LLaVA takes, and which of its positions are kept.

    Towers put different things before their patches: CLIP and DINOv2 a class token, SigLIP nothing, others registers
    too. How many they are is measured, by one empty image.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        side: int,
        select_layer: int = -2,
        select: FeatureSelect = "patch",
    ) -> None:
        """Wrap `tower`; by default take the patches of the layer before the last, as LLaVA does.

        Args:
            tower: Any vision tower.
            side: Pixels along each side of the images it will get.
            select_layer: Hidden state that is taken.
            select: `patch` for the patches alone, `cls_patch` for every position.

        Raises:
            ModelFolderError: The tower does not take such images, or gives no position for each of their patches.
        """
        super().__init__()
        self.tower = tower
        self.side = side
        self.select_layer = select_layer
        self.select = select
        positions = self._count_positions()
        self.patches_per_side = side // int(tower.config.patch_size)
        """Patches along each side of what the tower sees."""
        self.patches = self.patches_per_side**2
        self.num_prefix_tokens = positions - self.patches
        """Positions before the first patch: class token and registers."""
        if self.num_prefix_tokens < 0:
            raise ModelFormatError(
                f"the vision tower ({tower.config.model_type}) gives {positions} positions for the {self.patches} "
                f"patches of {side} x {side} pixels; choose a tower that keeps one for each, such as CLIP or SigLIP"
            )

    @torch.no_grad()
    def _count_positions(self) -> int:
        """Return the positions that one image becomes.

        Raises:
            ModelFolderError: The tower does not take it, or does not give (views, positions, width).
        """
        kind = self.tower.config.model_type
        shape = (1, 3, self.side, self.side)
        try:
            empty = torch.zeros(shape, dtype=self.tower.dtype, device=self.tower.device)
            found = self._hidden(empty)  # (1, positions, vision width)
            if found.ndim == _AXES and isinstance(
                self.tower.config.to_dict().get("patch_size"), int
            ):
                return found.shape[1]
        except (ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFormatError(
                f"the vision tower ({kind}) does not take the {self.side} x {self.side} pixels that its "
                f"preprocessor_config.json makes: {reason}"
            ) from None
        raise ModelFormatError(
            f"the vision tower ({kind}) does not cut images into square patches; choose one such as CLIP or SigLIP"
        )

    def _hidden(self, pixels: Tensor) -> Tensor:
        """Return the chosen hidden state, (views, positions, vision width).

        Raises:
            ModelFolderError: The tower has no such one.
        """
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
        if not -len(states) <= self.select_layer < len(states):
            raise ModelFormatError(
                f"the vision tower ({self.tower.config.model_type}) has no hidden state {self.select_layer}; it has 0 "
                f"to {len(states) - 1}, from the end -1 to -{len(states)}"
            )
        return states[self.select_layer]

    @property
    def width(self) -> int:
        """Width of the features."""
        return int(self.tower.config.hidden_size)

    @property
    def tokens_per_view(self) -> int:
        """Features that one view becomes."""
        return self.patches + (self.num_prefix_tokens if self.select == "cls_patch" else 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of `pixels`, (views, channels, height, width), as (views, patches, vision width)."""
        chosen = self._hidden(pixels)  # (views, leading + patches, vision width)
        return chosen if self.select == "cls_patch" else chosen[:, self.num_prefix_tokens :]
