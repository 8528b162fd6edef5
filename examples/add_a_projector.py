"""Add a projector: write a class, register it, and train stage 1 with it through the normal command.

    python examples/add_a_projector.py runs/captions.json runs/normalized

A model folder stores the projector's name, so a program that loads the folder registers the class first.
"""

import sys

import torch
from torch import Tensor, nn

from caldera.cli import app
from caldera.model.projector import PROJECTORS


class NormalizedProjector(nn.Module):
    """LLaVA-1.5's MLP behind a LayerNorm of the patch features."""

    image_newline: nn.Parameter | None
    """Follows each row of tiles, (language width,); None where images are not tiled."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(vision_width)
        self.linear_1 = nn.Linear(vision_width, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)
        self.register_parameter("image_newline", None)

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers, in order; calibration scales the first."""
        return self.linear_1, self.linear_2

    def forward(self, patches: Tensor) -> Tensor:
        """Project patch features, (views, patches, vision width), to the language model's width."""
        lifted = torch.nn.functional.gelu(
            self.linear_1(self.norm(patches))
        )  # (views, patches, width)
        return self.linear_2(lifted)  # (views, patches, width)


def main(data: str, out: str, *options: str) -> None:
    """Train stage 1 with the new projector; further arguments go to the command, such as `--set max_steps=20`."""
    PROJECTORS["normalized"] = NormalizedProjector
    app(["train", "pretrain", "--data", data, "--out", out, "--projector", "normalized", *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
