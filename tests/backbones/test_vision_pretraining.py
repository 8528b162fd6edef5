"""The vision tower's training at tiny size: patches are to say their cells' words, and both losses reach the tower."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backbones.optimization import build_adamw, cosine_schedule, optimizer_step
from backbones.patch_words import GRID, WORDS, patch_labels
from backbones.vision_pretraining import (
    SIDE,
    ContrastiveModel,
    RenderedScenes,
    VisionPretraining,
    WordTokenizer,
    _distinct,
    _logit_of_any,
    evaluate_retrieval,
    render_scenes,
    told,
)
from caldera.scenes.captions import captions_of
from caldera.scenes.coco_folder import encode_jpeg
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import Scene, sample_scene

SEED = 5
COUNT = 7
TINY = VisionPretraining(scenes=COUNT, seed=SEED, width=18, layers=3, heads=2)


@pytest.fixture(scope="module")
def gallery() -> RenderedScenes:
    """Seven drawn scenes."""
    images = []
    for index in range(COUNT):
        scene = sample_scene(index, seed=SEED, split="train", shapes=glyph_shapes())
        image = Image.open(BytesIO(encode_jpeg(scene)))
        images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return RenderedScenes(np.stack(images), SEED)


@pytest.fixture
def scenes(gallery: RenderedScenes) -> list[Scene]:
    """The same scenes, not drawn."""
    return [gallery.scene(index) for index in range(len(gallery))]


@pytest.fixture
def contrast(scenes: list[Scene]) -> ContrastiveModel:
    """A random tower with its text side and heads."""
    torch.manual_seed(1)
    return ContrastiveModel(
        TINY, WordTokenizer(text for scene in scenes for text in captions_of(scene))
    )


def test_cells_are_told_word_by_word(scenes: list[Scene]) -> None:
    """1 for each word of a cell, 0 for every other."""
    marks = told(scenes)
    assert marks.shape == (COUNT, GRID * GRID, len(WORDS))
    for scene, cells in zip(scenes, marks, strict=True):
        for words, row in zip(patch_labels(scene), cells, strict=True):
            assert {WORDS[at] for at in row.nonzero().flatten().tolist()} == set(words)
            assert float(row.sum()) == len(words)


def test_a_text_met_twice_is_one_text() -> None:
    """So that it is not its own rival."""
    texts, which = _distinct(["b", "a", "b", "c", "a"])
    assert texts == ["b", "a", "c"]
    assert which.tolist() == [0, 1, 0, 2, 1]


def test_texts_share_out_among_their_images() -> None:
    """The loss is the mean over texts of the mean over right images, worked out one by one."""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))  # (texts, images)
    which = torch.tensor([0, 1, 0, 2, 1])
    each = []
    for text in range(3):
        exponents = [float(score.exp()) for score in scores[text]]
        right = [image for image in range(5) if which[image] == text]
        each.append(-np.mean([np.log(exponents[image] / sum(exponents)) for image in right]))
    assert float(_logit_of_any(scores, which)) == pytest.approx(np.mean(each), rel=1e-5)


def test_where_all_texts_differ_the_loss_is_plain_cross_entropy() -> None:
    """Each text has one image."""
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    which = torch.tensor([3, 0, 4, 1, 2])
    images = torch.argsort(which)
    expected = torch.nn.functional.cross_entropy(scores, images)
    torch.testing.assert_close(_logit_of_any(scores, which), expected)


def test_words_are_numbered_and_padded() -> None:
    """Case and marks do not make other words; the end mark is the largest number, 0 pads to eights."""
    words = WordTokenizer(iter(["A dog, here.", "two cats"]))
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


def test_pixels_are_normalized_and_belong_to_their_scenes(gallery: RenderedScenes) -> None:
    """Taken back, they are what was drawn."""
    pixels = gallery.pixels([4, 2])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    back = (pixels.permute(0, 2, 3, 1) * std + mean) * 255
    drawn = Image.open(BytesIO(encode_jpeg(gallery.scene(2)))).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    np.testing.assert_allclose(back[1].numpy(), np.asarray(drawn), atol=1e-2)


@pytest.mark.slow
def test_a_gallery_is_drawn_once_and_kept(gallery: RenderedScenes, tmp_path: Path) -> None:
    """By several processes, each image in its place; a second start takes the file as it is."""
    file = tmp_path / "pixels.npy"
    drawn = render_scenes(file, COUNT, SEED)
    torch.testing.assert_close(drawn.pixels(range(COUNT)), gallery.pixels(range(COUNT)))
    assert drawn.scene(3) == gallery.scene(3)
    assert {path.name for path in tmp_path.iterdir()} == {"pixels.npy"}
    written = file.stat().st_mtime_ns
    assert len(render_scenes(file, COUNT, SEED)) == COUNT
    assert file.stat().st_mtime_ns == written


def gradients(contrast: ContrastiveModel, loss: Tensor) -> dict[str, float]:
    """Return the largest gradient of each parameter of the tower, 0 where there is none."""
    contrast.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: 0.0 if weight.grad is None else float(weight.grad.abs().max())
        for name, weight in contrast.tower.named_parameters()
    }


def test_both_losses_reach_the_tower(contrast: ContrastiveModel, gallery: RenderedScenes) -> None:
    """The one on images through all of it, the one on words through all but the last layer."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    losses = contrast.losses(gallery.pixels(range(COUNT)), scenes, random.Random(0))
    assert losses.shape == (2,)
    assert bool(torch.isfinite(losses).all())
    whole, words = (gradients(contrast, loss) for loss in losses)
    after = {name for name in whole if ".layers.2." in name or "post_layernorm" in name}
    assert after
    assert {name for name, most in whole.items() if most == 0} == set()
    assert {name for name, most in words.items() if most == 0} == after


def test_vectors_are_of_length_one(contrast: ContrastiveModel, gallery: RenderedScenes) -> None:
    """Texts and images are compared by direction alone; patches score every word."""
    images, scores = contrast.encode_image(gallery.pixels(range(3)))
    assert scores.shape == (3, GRID * GRID, len(WORDS))
    for vectors in (images, contrast.encode_text(captions_of(gallery.scene(1)))):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert vectors.shape[1] == TINY.width


def test_the_probe_counts_cells_whose_words_are_all_right(
    contrast: ContrastiveModel, gallery: RenderedScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of cells that things fill; one word too many or too few is wrong."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    scores = told(scenes) * 2 - 1  # (scenes, patches, words)
    things = [
        (number, cell)
        for number, scene in enumerate(scenes)
        for cell, words in enumerate(patch_labels(scene))
        if len(words) > 1
    ]
    scores[things[0]] = 1
    scores[things[1]] = -1
    images = contrast.encode_image(gallery.pixels(range(COUNT)))[0]
    monkeypatch.setattr(contrast, "encode_image", lambda _: (images, scores))
    found = evaluate_retrieval(contrast, gallery, COUNT)
    assert found["things_told"] == pytest.approx(1 - 2 / len(things), abs=1e-3)


def test_a_few_steps_make_the_losses_smaller(
    contrast: ContrastiveModel, gallery: RenderedScenes
) -> None:
    """On seven scenes that are seen again and again."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    pixels = gallery.pixels(range(COUNT))
    optimizer = build_adamw(contrast, 1e-2, 0.05, betas=(0.9, 0.98))
    seen = []
    for _ in range(30):
        losses = contrast.losses(pixels, scenes, random.Random(0))
        optimizer_step(losses.sum(), contrast, optimizer, 5e-3)
        seen.append(losses.detach())
    assert bool((seen[-1] < 0.8 * seen[0]).all())


def test_the_rate_rises_and_falls() -> None:
    """From next to nothing to the peak over the warm-up, then along half a cosine to zero."""
    rates = [cosine_schedule(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9] == pytest.approx(1, rel=0.03)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_only_matrices_decay(contrast: ContrastiveModel) -> None:
    """Biases, norms and scales do not; every parameter is in one group."""
    matrices, others = build_adamw(contrast, 1e-3, 0.05, betas=(0.9, 0.98)).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert all(weight.ndim > 1 for weight in matrices["params"])
    assert all(weight.ndim <= 1 for weight in others["params"])
    count = len(list(contrast.parameters()))
    assert len(matrices["params"]) + len(others["params"]) == count
