"""Shipped backbones, pretrained on drawn scenes by the programs in the repository's `backbones/`."""

from pathlib import Path

from caldera.errors import UnknownNameError

_SHIPPED = Path(__file__).parent / "pretrained"

BACKBONES: dict[str, Path] = {
    "scenes-vit": _SHIPPED / "scenes-vit",
    "scenes-llama": _SHIPPED / "scenes-llama",
}
"""Folders of the shipped backbones, in transformers' format."""

FORMER_DIGESTS: dict[str, str] = {
    "bf510facbdce2bddf71257b314c802a974e078e25f3c7e32ee7c82f3179da250": "scenes-vit",
    "4c7d397262b6318b0c90006d3b9894f53fcb9aa51a8b88bc7afe0747b279ace7": "scenes-vit",
    "a49b6f0b9524011ce7ef17b922b4cd9519acfe5dfa668c5e1dab17e0ae9bf55c": "scenes-vit",
    "1fa05665cc91522c4bccda5a60f4b8a45251b0d74bca969422fe97c528f6933c": "scenes-llama",
    "1adda83d83f3cde59598c8951a70057b4fd0821a48e36c0791c2c150eeb5fa10": "scenes-llama",
    "c872a69174a0a6d9850bcf7b088f3e7e97fd9348028e585efaf6a9673421eaed": "scenes-llama",
    "09d87858cc963bfbacaac381abce76b8ba3bf8d039bded3ada4fd99d1dadb1ab": "scenes-llama",
}
"""Digests of backbones that earlier versions shipped, by which models made from them are known."""


def find_backbone(name: str) -> Path:
    """Return the folder of a shipped backbone, or `name` itself if it is a folder."""
    if name in BACKBONES:
        return BACKBONES[name]
    if Path(name).is_dir():
        return Path(name)
    raise UnknownNameError("backbone or folder", name, BACKBONES)
