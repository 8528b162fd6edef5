"""The vision towers of LLaVA's releases are known by their exact names, and by nothing like them."""

import pytest
from transformers import CLIPVisionConfig

from caldera.formats.original.config import hub_name, known_tower, tower_difference


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [("openai/clip-vit-large-patch14", 224, 256), ("openai/clip-vit-large-patch14-336", 336, 576)],
)
def test_a_known_tower_is_found_by_name_and_by_sizes(name: str, side: int, tokens: int) -> None:
    """Name to sizes and back is the identity; the patches are as many as LLaVA's papers say (spec 1.1)."""
    known = known_tower(name)
    assert known
    config, processor = known
    assert processor.side == side
    assert (side // int(str(config.patch_size))) ** 2 == tokens
    assert hub_name(config) == name
    assert (
        hub_name(CLIPVisionConfig.from_dict({**config.to_dict(), "num_hidden_layers": 23})) is None
    )


def test_a_name_that_is_only_alike_is_not_known() -> None:
    """No part of a name decides anything."""
    assert known_tower("someone/openai/clip-vit-large-patch14-336") is None
    assert known_tower("clip-vit-large-patch14-336") is None


def test_a_difference_is_named() -> None:
    """The two known towers differ in the size of their images alone."""
    first, second = map(
        known_tower, ("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336")
    )
    assert first
    assert second
    assert tower_difference(first[0], second[0]) == "image_size"
