"""The vision tower's training at tiny size: regions lie where things are, and both losses reach the tower."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from caldera.boxes import place_of
from caldera.scenes.captions import captions, region_phrase
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.folder import jpeg
from caldera.scenes.kinds import KINDS, SETTINGS
from caldera.scenes.schedule import decaying_adamw, half_cosine, take_step
from caldera.scenes.vision_pretraining import (
    CELLS,
    SIDE,
    Contrast,
    Gallery,
    VisionPretraining,
    Words,
    _any_of,
    _distinct,
    draw_gallery,
    patch_shares,
    regions_of,
)
from caldera.scenes.world import SIDE as DRAWN
from caldera.scenes.world import Group, Scene, Thing, draw_up

SEED = 5
COUNT = 7
TINY = VisionPretraining(scenes=COUNT, seed=SEED, width=18, layers=3, heads=2)


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    """Seven drawn scenes."""
    pictures = []
    for index in range(COUNT):
        scene = draw_up(index, seed=SEED, split="train", shapes=glyph_shapes())
        picture = Image.open(BytesIO(jpeg(scene)))
        pictures.append(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return Gallery(np.stack(pictures), SEED)


@pytest.fixture
def scenes(gallery: Gallery) -> list[Scene]:
    """The same scenes, not drawn."""
    return [gallery.scene(index) for index in range(len(gallery))]


@pytest.fixture
def contrast(scenes: list[Scene]) -> Contrast:
    """A random tower with its text side and heads."""
    torch.manual_seed(1)
    texts = [text for scene in scenes for text in captions(scene)]
    texts += [
        region_phrase(group, place_of(thing.box))
        for scene in scenes
        for group, thing in scene.things
    ]
    return Contrast(TINY, Words(iter([*texts, *(f"a {setting}" for setting in SETTINGS)])))


def test_patch_shares_lie_where_the_box_is(scenes: list[Scene]) -> None:
    """They are the shares of the box's pixels in each patch, counted one by one, and add up to one."""
    side = DRAWN // CELLS
    for _, thing in [pair for scene in scenes for pair in scene.things]:
        pixels = np.zeros((DRAWN, DRAWN))
        pixels[thing.top : thing.top + thing.height, thing.left : thing.left + thing.width] = 1
        cells = pixels.reshape(CELLS, side, CELLS, side).sum(axis=(1, 3))  # (rows, columns)
        shares = patch_shares(thing)
        assert shares.dtype == np.float32
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(shares, (cells / cells.sum()).ravel(), atol=1e-6)


def test_a_thing_within_one_patch_is_that_patch_alone() -> None:
    """Row 2, column 5."""
    side = DRAWN // CELLS
    shares = patch_shares(Thing(5 * side + 3, 2 * side + 1, 11, 7, mirrored=False))
    assert shares[2 * CELLS + 5] == 1
    assert np.count_nonzero(shares) == 1


def test_every_thing_is_a_region_and_so_is_free_ground(scenes: list[Scene]) -> None:
    """In order, each with its picture's number and a phrase that names it; ground lies where no thing is."""
    regions = regions_of(scenes, random.Random(3))
    assert regions.shares.shape == (len(regions.phrases), CELLS * CELLS)
    torch.testing.assert_close(regions.shares.sum(dim=1), torch.ones(len(regions.phrases)))
    found = iter(zip(regions.image.tolist(), regions.shares.numpy(), regions.phrases, strict=True))
    placed = 0
    for number, scene in enumerate(scenes):
        covered = np.zeros(CELLS * CELLS, dtype=bool)
        for group, thing in scene.things:
            image, shares, said = next(found)
            assert image == number
            np.testing.assert_array_equal(shares, patch_shares(thing))
            assert said in (region_phrase(group, place_of(thing.box)), region_phrase(group, None))
            placed += said != region_phrase(group, None)
            covered |= shares > 0
        image, shares, said = next(found)
        assert image == number
        assert said == f"a {scene.setting}" or (said, scene.setting) == ("snow", "snow")
        np.testing.assert_array_equal(shares > 0, ~covered)
    assert next(found, None) is None
    assert 0 < placed < len(regions.phrases) - COUNT


def test_ground_that_is_hardly_to_be_seen_is_no_region() -> None:
    """With three patches free of things the setting is not named, with four it is."""
    side = DRAWN // CELLS
    for free, named in ((3, False), (4, True)):
        top = Thing(0, 0, DRAWN, DRAWN - side, mirrored=False)
        rest = Thing(0, DRAWN - side, DRAWN - free * side, side, mirrored=False)
        scene = Scene("x", "beach", (Group(KINDS["dog"], None, (top, rest)),))
        assert ("a beach" in regions_of([scene], random.Random(0)).phrases) is named


def test_a_text_met_twice_is_one_text() -> None:
    """So that it is not its own rival."""
    texts, which = _distinct(["b", "a", "b", "c", "a"])
    assert texts == ["b", "a", "c"]
    assert which.tolist() == [0, 1, 0, 2, 1]


def test_texts_share_out_among_their_pictures() -> None:
    """The loss is the mean over texts of the mean over right pictures, worked out one by one."""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))  # (texts, images)
    which = torch.tensor([0, 1, 0, 2, 1])
    each = []
    for text in range(3):
        exponents = [float(score.exp()) for score in scores[text]]
        right = [image for image in range(5) if which[image] == text]
        each.append(-np.mean([np.log(exponents[image] / sum(exponents)) for image in right]))
    assert float(_any_of(scores, which)) == pytest.approx(np.mean(each), rel=1e-5)


def test_where_all_texts_differ_the_loss_is_plain_cross_entropy() -> None:
    """Each text has one picture."""
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    which = torch.tensor([3, 0, 4, 1, 2])
    images = torch.argsort(which)
    expected = torch.nn.functional.cross_entropy(scores, images)
    torch.testing.assert_close(_any_of(scores, which), expected)


def test_words_are_numbered_and_padded() -> None:
    """Case and marks do not make other words; the end mark is the largest number, 0 pads to eights."""
    words = Words(iter(["A dog, here.", "two cats"]))
    rows = words(["a DOG.", "two cats , here . a dog two cats"])
    assert rows.shape == (2, 16)
    assert words.end == 8
    first, second = rows.tolist()
    assert first[:4] == [*second[5:7], second[4], words.end]
    assert first[4:] == [0] * 12
    assert len(set(second[:9])) == 7
    assert rows.max() == words.end
    with pytest.raises(KeyError, match="zebra"):
        words(["a zebra"])


def test_pixels_are_normalised_and_belong_to_their_scenes(gallery: Gallery) -> None:
    """Taken back, they are what was drawn."""
    pixels = gallery.pixels([4, 2])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    back = (pixels.permute(0, 2, 3, 1) * std + mean) * 255
    drawn = Image.open(BytesIO(jpeg(gallery.scene(2)))).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    np.testing.assert_allclose(back[1].numpy(), np.asarray(drawn), atol=1e-2)


@pytest.mark.slow
def test_a_gallery_is_drawn_once_and_kept(gallery: Gallery, tmp_path: Path) -> None:
    """By several processes, each picture in its place; a second start takes the file as it is."""
    file = tmp_path / "pixels.npy"
    drawn = draw_gallery(file, COUNT, SEED)
    torch.testing.assert_close(drawn.pixels(range(COUNT)), gallery.pixels(range(COUNT)))
    assert drawn.scene(3) == gallery.scene(3)
    assert {path.name for path in tmp_path.iterdir()} == {"pixels.npy"}
    written = file.stat().st_mtime_ns
    assert len(draw_gallery(file, COUNT, SEED)) == COUNT
    assert file.stat().st_mtime_ns == written


def gradients(contrast: Contrast, loss: Tensor) -> dict[str, float]:
    """Return the largest gradient of each parameter of the tower, 0 where there is none."""
    contrast.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: 0.0 if weight.grad is None else float(weight.grad.abs().max())
        for name, weight in contrast.tower.named_parameters()
    }


def test_both_losses_reach_the_tower(contrast: Contrast, gallery: Gallery) -> None:
    """The one on pictures through all of it, the one on regions through all but the last layer."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    losses = contrast.losses(gallery.pixels(range(COUNT)), scenes, random.Random(0))
    assert losses.shape == (2,)
    assert bool(torch.isfinite(losses).all())
    whole, part = (gradients(contrast, loss) for loss in losses)
    after = {name for name in whole if ".layers.2." in name or "post_layernorm" in name}
    assert after
    assert {name for name, most in whole.items() if most == 0} == set()
    assert {name for name, most in part.items() if most == 0} == after


def test_vectors_are_of_length_one(contrast: Contrast, gallery: Gallery) -> None:
    """Texts, pictures and regions are compared by direction alone."""
    scenes = [gallery.scene(index) for index in range(3)]
    pictures, features = contrast.look(gallery.pixels(range(3)))
    assert features.shape == (3, CELLS * CELLS, TINY.width)
    regions = contrast.pool(features, regions_of(scenes, random.Random(0)))
    for vectors in (pictures, regions, contrast.read(["a meadow", "a beach"])):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert vectors.shape[1] == TINY.width


def test_a_region_is_the_mean_of_its_patches(contrast: Contrast, scenes: list[Scene]) -> None:
    """Weighted by the shares, from its own picture."""
    regions = regions_of(scenes, random.Random(0))
    features = torch.randn(COUNT, CELLS * CELLS, 18, generator=torch.Generator().manual_seed(3))
    pooled = contrast.pool(features, regions)
    for at, image in enumerate(regions.image.tolist()):
        mean = (features[image] * regions.shares[at, :, None]).sum(dim=0)
        torch.testing.assert_close(pooled[at], mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_a_few_steps_make_the_losses_smaller(contrast: Contrast, gallery: Gallery) -> None:
    """On seven scenes that are seen again and again."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    pixels = gallery.pixels(range(COUNT))
    optimiser = decaying_adamw(contrast, 1e-2, 0.05, betas=(0.9, 0.98))
    seen = []
    for _ in range(12):
        losses = contrast.losses(pixels, scenes, random.Random(0))
        take_step(losses.sum(), contrast, optimiser, 5e-3)
        seen.append(losses.detach())
    assert bool((seen[-1] < 0.8 * seen[0]).all())


def test_the_rate_rises_and_falls() -> None:
    """From next to nothing to the peak over the warm-up, then along half a cosine to zero."""
    rates = [half_cosine(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9] == pytest.approx(1, rel=0.03)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_only_matrices_decay(contrast: Contrast) -> None:
    """Biases, norms and scales do not; every parameter is in one group."""
    matrices, others = decaying_adamw(contrast, 1e-3, 0.05, betas=(0.9, 0.98)).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(weight.ndim > 1 for weight in matrices["params"])
    assert all(weight.ndim <= 1 for weight in others["params"])
    count = len(list(contrast.parameters()))
    assert len(matrices["params"]) + len(others["params"]) == count
