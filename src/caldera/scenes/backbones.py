"""Shipped backbones, pretrained on drawn scenes by the programs in the repository's `backbones/`."""

from pathlib import Path

from caldera.errors import UnknownNameError

_SHIPPED = Path(__file__).parent / "pretrained"

BACKBONES: dict[str, Path] = {
    "scenes-vit": _SHIPPED / "scenes-vit",
    "scenes-llama": _SHIPPED / "scenes-llama",
}
"""Folders of the shipped backbones, in transformers' format."""


def find_backbone(name: str) -> Path:
    """Return the folder of a shipped backbone, or `name` itself if it is a folder."""
    if name in BACKBONES:
        return BACKBONES[name]
    if Path(name).is_dir():
        return Path(name)
    raise UnknownNameError("backbone or folder", name, BACKBONES)
