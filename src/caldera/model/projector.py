"""Projectors from patch features to image tokens, the part that stage 1 trains."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from caldera.errors import UnknownNameError


class LinearProjector(nn.Linear):
    """One linear layer, as in the first LLaVA (arXiv 2304.08485, section 4.1)."""

    image_newline: nn.Parameter | None
    """Embedding at the end of each row of tiles, (language width,); None for models without tiles."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__(vision_width, language_width)
        self.register_parameter("image_newline", None)

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers, in order."""
        return (self,)


class MlpProjector(nn.Module):
    """Two linear layers with an exact GELU between them, as in LLaVA-1.5 (arXiv 2310.03744, section 3.3)."""

    image_newline: nn.Parameter | None
    """Embedding at the end of each row of tiles, (language width,); None for models without tiles."""

    def __init__(self, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, language_width)
        self.linear_2 = nn.Linear(language_width, language_width)
        self.register_parameter("image_newline", None)

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers, in order."""
        return self.linear_1, self.linear_2

    def forward(self, patches: Tensor) -> Tensor:
        """Project patch features, (views, patches, vision width), to the language model's width."""
        lifted = nn.functional.gelu(self.linear_1(patches))  # (views, patches, width)
        return self.linear_2(lifted)  # (views, patches, width)


Projector = LinearProjector | MlpProjector

PROJECTORS: dict[str, Callable[[int, int], Projector]] = {
    "linear": LinearProjector,
    "mlp2x_gelu": MlpProjector,
}
"""Projectors by their names in LLaVA's configs."""


def build_projector(name: str, vision_width: int, language_width: int) -> Projector:
    """Build the projector called `name`, with PyTorch's default initialization, as in LLaVA.

    Raises:
        UnknownNameError: No projector has this name.
    """
    if name not in PROJECTORS:
        raise UnknownNameError("projector", name, PROJECTORS)
    return PROJECTORS[name](vision_width, language_width)


@torch.no_grad()
def add_image_newline(projector: Projector) -> None:
    """Add the newline embedding to a projector without one, initialized as in LLaVA-NeXT."""
    if projector.image_newline is None:
        last = projector.layers[-1].weight  # (language width, ...)
        newline = torch.randn(len(last), dtype=last.dtype, device=last.device)
        projector.image_newline = nn.Parameter(newline / len(last) ** 0.5)


@torch.no_grad()
def match_embedding_scale(projector: Projector, patches: Tensor, embeddings: Tensor) -> None:
    """Scale a fresh projector so that image tokens have the standard deviation of word embeddings.

    Towers differ widely in the size of their features; a projector whose tokens are many times as large as words takes
    its first hundreds of steps to shrink them. Each layer is divided by the standard deviation of its output.

    Args:
        projector: As initialized.
        patches: Features of some images, (views, patches, vision width).
        embeddings: The language model's input embeddings, (vocabulary, width).
    """
    first, *rest = projector.layers
    target = embeddings.float().std()
    inner = first(patches)  # (views, patches, width)
    scale = (1.0 if rest else target) / inner.std()
    first.weight.mul_(scale)
    first.bias.mul_(scale)
    for layer in rest:
        scale = target / projector(patches).std()
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)
    if projector.image_newline is not None:
        projector.image_newline.mul_(target / projector.image_newline.std())
