"""Vision tower of any family in transformers, from pixels to patch features."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError

FeatureSelect = Literal["patch", "cls_patch"]

_AXES = 3
"""Axes of features: views, positions, vision width."""


class VisionTower(nn.Module):
    """A tower, the layer whose hidden state is used, and the selection of its positions.

    Towers have different prefix tokens before their patches: CLIP and DINOv2 a class token, SigLIP none, others also
    registers. Their number is measured with one empty image.
    """

    def __init__(
        self,
        tower: PreTrainedModel,
        side: int,
        select_layer: int = -2,
        select: FeatureSelect = "patch",
    ) -> None:
        """Wrap `tower`; by default use the patches of the layer before the last, as in LLaVA.

        Args:
            tower: Any vision tower.
            side: Pixels along each side of its input.
            select_layer: Hidden state that is used.
            select: `patch` for the patches alone, `cls_patch` for every position.
        """
        super().__init__()
        self.tower = tower
        self.side = side
        self.select_layer = select_layer
        self.select = select
        positions = self._count_positions()
        self.patches_per_side = side // int(tower.config.patch_size)
        """Patches along each side of its input."""
        self.patches = self.patches_per_side**2
        self.num_prefix_tokens = positions - self.patches
        """Positions before the first patch: class token and registers."""
        if self.num_prefix_tokens < 0:
            raise ModelFormatError(
                f"the vision tower ({tower.config.model_type}) gives {positions} positions for the {self.patches} "
                f"patches of {side} x {side} pixels; choose a tower with one for each, such as CLIP or SigLIP"
            )

    @torch.no_grad()
    def _count_positions(self) -> int:
        """Return the number of positions of one image."""
        kind = self.tower.config.model_type
        shape = (1, 3, self.side, self.side)
        try:
            empty = torch.zeros(shape, dtype=self.tower.dtype, device=self.tower.device)
            hidden = self._hidden(empty)  # (1, positions, vision width)
            patch_size = self.tower.config.to_dict().get("patch_size")
            if hidden.ndim == _AXES and isinstance(patch_size, int):
                return hidden.shape[1]
        except (ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFormatError(
                f"the vision tower ({kind}) does not accept the {self.side} x {self.side} pixels of its "
                f"preprocessor_config.json: {reason}"
            ) from None
        raise ModelFormatError(
            f"the vision tower ({kind}) does not cut images into square patches; choose one such as CLIP or SigLIP"
        )

    def _hidden(self, pixels: Tensor) -> Tensor:
        """Return the selected hidden state, (views, positions, vision width)."""
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
        """Features of one view."""
        return self.patches + (self.num_prefix_tokens if self.select == "cls_patch" else 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of `pixels`, (views, channels, height, width), as (views, patches, vision width)."""
        features = self._hidden(pixels)  # (views, prefix tokens + patches, vision width)
        return features if self.select == "cls_patch" else features[:, self.num_prefix_tokens :]
