"""The vision towers of LLaVA's releases are recognized by their exact names only."""

import pytest
from transformers import CLIPVisionConfig

from caldera.formats.original.config import hub_name, known_tower, tower_difference


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [("openai/clip-vit-large-patch14", 224, 256), ("openai/clip-vit-large-patch14-336", 336, 576)],
)
def test_a_known_tower_is_found_by_name_and_by_sizes(name: str, side: int, tokens: int) -> None:
    """A name gives sizes that give the name again; the number of patches is that of LLaVA's papers."""
    tower = known_tower(name)
    assert tower
    config, processor = tower
    assert processor.side == side
    assert (side // int(str(config.patch_size))) ** 2 == tokens
    assert hub_name(config) == name
    assert (
        hub_name(CLIPVisionConfig.from_dict({**config.to_dict(), "num_hidden_layers": 23})) is None
    )


def test_a_similar_name_is_unknown() -> None:
    """A part of a name is not enough."""
    assert known_tower("someone/openai/clip-vit-large-patch14-336") is None
    assert known_tower("clip-vit-large-patch14-336") is None


def test_the_difference_of_two_towers_is_named() -> None:
    """LLaVA's two towers differ in the size of their images alone."""
    first, second = map(
        known_tower, ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336")
    )
    assert first
    assert second
    assert tower_difference(first[0], second[0]) == "image_size"
