"""Vision tower of any family in transformers, from pixels to patch features."""

from contextlib import suppress
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from caldera.errors import ModelFormatError

FeatureSelect = Literal["patch", "cls_patch"]

_SEQUENCE_AXES = 3
"""Axes of a sequence: views, positions, width."""

_MAP_AXES = 4
"""Axes of a map: views, rows, columns, width."""


class VisionTower(nn.Module):
    """A tower, the layer whose hidden state is used, and the selection of its positions.

    The hidden states of a ViT are sequences: prefix tokens, then patches. CLIP and DINOv2 have a class token before
    their patches, SigLIP none, others also registers. Those of convolutional and hierarchical towers, such as
    EfficientNet, ConvNeXt and Swin, are maps, whose grid and width differ between layers; each cell is a patch. Grid,
    width and prefix tokens are measured with one empty image.
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

        Raises:
            ModelFormatError: There is no such hidden state, or it does not have one position for each patch.
        """
        super().__init__()
        self.tower = tower
        self.side = side
        self.select_layer = select_layer
        self.select = select
        self.gradient_checkpointing = False
        """Whether training computes the hidden states again in the backward pass."""
        outputs = self._measure()
        hidden = self._select(outputs)
        states = outputs.hidden_states
        self.is_map = states is not None and states[0].ndim == _MAP_AXES
        """Whether transformers gives the hidden states as maps, and not as sequences."""
        self.width = hidden.shape[-1]
        """Width of the features."""
        has_grid = hidden.ndim == _MAP_AXES
        patch_size = (
            side / hidden.shape[1] if has_grid else tower.config.to_dict().get("patch_size")
        )
        if not isinstance(patch_size, int | float) or hidden.ndim not in (
            _SEQUENCE_AXES,
            _MAP_AXES,
        ):
            raise ModelFormatError(
                f"the vision tower ({tower.config.model_type}) does not cut images into square patches; choose one "
                "such as CLIP or SigLIP"
            )
        self.patch_size = patch_size
        """Pixels along each side of a patch."""
        self.patches_per_side = hidden.shape[1] if has_grid else int(side // patch_size)
        self.patches = self.patches_per_side**2
        positions = hidden.shape[1:-1].numel()
        self.num_prefix_tokens = positions - self.patches
        """Positions before the first patch: class token and registers."""
        if self.num_prefix_tokens < 0 or (has_grid and self.num_prefix_tokens):
            raise ModelFormatError(
                f"the vision tower ({tower.config.model_type}) gives {positions} positions for the {self.patches} "
                f"patches of {side} x {side} pixels; choose a tower with one for each, such as CLIP or SigLIP"
            )

    @torch.no_grad()
    def _measure(self) -> BaseModelOutput:
        """Return the outputs for one empty image; running statistics of the tower do not change."""
        training = self.tower.training
        self.tower.eval()
        try:
            return self._run(torch.zeros((1, 3, self.side, self.side), device=self.tower.device))
        except (ValueError, RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFormatError(
                f"the vision tower ({self.tower.config.model_type}) does not accept the {self.side} x {self.side} "
                f"pixels of its preprocessor_config.json: {reason}"
            ) from None
        finally:
            self.tower.train(training)

    def _run(self, pixels: Tensor) -> BaseModelOutput:
        """Return the tower's outputs with all hidden states."""
        pixels = pixels.to(self.tower.dtype)
        outputs: BaseModelOutput = self.tower(pixel_values=pixels, output_hidden_states=True)
        return outputs

    def _encode(self, pixels: Tensor) -> Tensor:
        return self._select(self._run(pixels))

    def _select(self, outputs: BaseModelOutput) -> Tensor:
        """Return the selected hidden state, (views, positions, width) or (views, rows, columns, width)."""
        states = outputs.get("reshaped_hidden_states") or outputs.hidden_states
        if not states:
            raise ModelFormatError(
                f"the vision tower ({self.tower.config.model_type}) gives no hidden states; choose one such as CLIP"
            )
        if states[0].ndim == _MAP_AXES:
            states = _complete_maps(states, outputs.get("last_hidden_state"))
        if not -len(states) <= self.select_layer < len(states):
            raise ModelFormatError(
                f"the vision tower ({self.tower.config.model_type}) has no hidden state {self.select_layer}; it has 0 "
                f"to {len(states) - 1}, from the end -1 to -{len(states)}{_list_maps(states)}"
            )
        state: Tensor = states[self.select_layer]
        return state

    @property
    def tokens_per_view(self) -> int:
        """Features of one view."""
        return self.patches + (self.num_prefix_tokens if self.select == "cls_patch" else 0)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of `pixels`, (views, channels, height, width), as (views, patches, vision width)."""
        if self.gradient_checkpointing and self.training:
            hidden = checkpoint(self._encode, pixels, use_reentrant=False)
        else:
            hidden = self._encode(pixels)
        features = hidden.flatten(1, -2)  # (views, prefix tokens + patches, width)
        return features if self.select == "cls_patch" else features[:, self.num_prefix_tokens :]

    def set_attention(self, name: str) -> None:
        """Use one of transformers' attention functions; a tower that does not support it keeps what it has."""
        with suppress(ValueError):
            self.tower.set_attn_implementation(name)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; batch norms stay in evaluation mode, so that their running statistics never change.

        A batch holds a few images, and its statistics would depend on which images share it.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self


def _complete_maps(states: tuple[Tensor, ...], last: Tensor | None) -> tuple[Tensor, ...]:
    """Return all maps of a tower as (views, rows, columns, width).

    Where the last map is none of the hidden states, as in EfficientNet and MobileNetV2, it is added at the end.
    """
    maps = _channels_last(states)
    if last is not None and last.ndim == _MAP_AXES:
        (last,) = _channels_last((last,))
        if last.shape != maps[-1].shape:
            maps += (last,)
    return maps


def _channels_last(states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return maps of square images with their width in the last axis; rows and columns are equal in all of them."""
    if all(state.shape[2] == state.shape[3] for state in states):
        return tuple(state.permute(0, 2, 3, 1) for state in states)
    return states


def _list_maps(states: tuple[Tensor, ...]) -> str:
    """List the grids and widths of maps; those of sequences are equal."""
    if states[0].ndim != _MAP_AXES:
        return ""
    return ": " + ", ".join(
        f"{index} has {state.shape[1]} x {state.shape[2]} patches of width {state.shape[3]}"
        for index, state in enumerate(states)
    )
