"""Tests of the vision tower's pretraining at tiny size."""

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
    _deduplicate,
    _logit_of_any,
    evaluate_retrieval,
    render_scenes,
    word_targets,
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
    """Render seven scenes."""
    images = []
    for index in range(COUNT):
        scene = sample_scene(index, seed=SEED, split="train", shapes=glyph_shapes())
        image = Image.open(BytesIO(encode_jpeg(scene)))
        images.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return RenderedScenes(np.stack(images), SEED)


@pytest.fixture
def scenes(gallery: RenderedScenes) -> list[Scene]:
    """Return the same scenes."""
    return [gallery.scene(index) for index in range(len(gallery))]


@pytest.fixture
def contrast(scenes: list[Scene]) -> ContrastiveModel:
    """Create a random tower with its text encoder and heads."""
    torch.manual_seed(1)
    return ContrastiveModel(
        TINY, WordTokenizer(text for scene in scenes for text in captions_of(scene))
    )


def test_targets_are_the_words_of_each_cell(scenes: list[Scene]) -> None:
    """1 for the words of the cell, 0 for all others."""
    targets = word_targets(scenes)
    assert targets.shape == (COUNT, GRID * GRID, len(WORDS))
    for scene, cells in zip(scenes, targets, strict=True):
        for words, row in zip(patch_labels(scene), cells, strict=True):
            assert {WORDS[index] for index in row.nonzero().flatten().tolist()} == set(words)
            assert float(row.sum()) == len(words)


def test_equal_texts_are_deduplicated() -> None:
    """Equal texts are not negatives of each other."""
    texts, indices = _deduplicate(["b", "a", "b", "c", "a"])
    assert texts == ["b", "a", "c"]
    assert indices.tolist() == [0, 1, 0, 2, 1]


def test_the_loss_of_a_text_is_averaged_over_its_images() -> None:
    """It is the mean over texts of the mean over their images, computed one by one."""
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))  # (texts, images)
    targets = torch.tensor([0, 1, 0, 2, 1])
    losses = []
    for text in range(3):
        exponents = [float(score.exp()) for score in scores[text]]
        positives = [image for image in range(5) if targets[image] == text]
        losses.append(-np.mean([np.log(exponents[image] / sum(exponents)) for image in positives]))
    assert float(_logit_of_any(scores, targets)) == pytest.approx(np.mean(losses), rel=1e-5)


def test_with_distinct_texts_the_loss_is_plain_cross_entropy() -> None:
    """Each text has one image."""
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([3, 0, 4, 1, 2])
    images = torch.argsort(targets)
    expected = torch.nn.functional.cross_entropy(scores, images)
    torch.testing.assert_close(_logit_of_any(scores, targets), expected)


def test_words_get_ids_and_rows_are_padded() -> None:
    """Case and punctuation do not change words; the end token is the largest id, 0 pads to a multiple of 8."""
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


def test_pixels_are_normalized_images_of_their_scenes(gallery: RenderedScenes) -> None:
    """Denormalized, they equal the rendered image."""
    pixels = gallery.pixels([4, 2])
    assert pixels.shape == (2, 3, SIDE, SIDE)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    denormalized = (pixels.permute(0, 2, 3, 1) * std + mean) * 255
    rendered = Image.open(BytesIO(encode_jpeg(gallery.scene(2)))).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    np.testing.assert_allclose(denormalized[1].numpy(), np.asarray(rendered), atol=1e-2)


@pytest.mark.slow
def test_scenes_are_rendered_once_and_reused(gallery: RenderedScenes, tmp_path: Path) -> None:
    """Several processes render in order, and a second start reuses the file."""
    file = tmp_path / "pixels.npy"
    rendered = render_scenes(file, COUNT, SEED)
    torch.testing.assert_close(rendered.pixels(range(COUNT)), gallery.pixels(range(COUNT)))
    assert rendered.scene(3) == gallery.scene(3)
    assert {path.name for path in tmp_path.iterdir()} == {"pixels.npy"}
    modified = file.stat().st_mtime_ns
    assert len(render_scenes(file, COUNT, SEED)) == COUNT
    assert file.stat().st_mtime_ns == modified


def gradients(contrast: ContrastiveModel, loss: Tensor) -> dict[str, float]:
    """Return the largest gradient of each parameter of the tower, 0 if it has none."""
    contrast.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: 0.0 if weight.grad is None else float(weight.grad.abs().max())
        for name, weight in contrast.tower.named_parameters()
    }


def test_both_losses_reach_the_tower(contrast: ContrastiveModel, gallery: RenderedScenes) -> None:
    """The contrastive loss reaches all layers, the loss of words all but the last."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    losses = contrast.losses(gallery.pixels(range(COUNT)), scenes, random.Random(0))
    assert losses.shape == (2,)
    assert bool(torch.isfinite(losses).all())
    image_gradients, word_gradients = (gradients(contrast, loss) for loss in losses)
    last_layer = {
        name for name in image_gradients if ".layers.2." in name or "post_layernorm" in name
    }
    assert last_layer
    assert {name for name, value in image_gradients.items() if value == 0} == set()
    assert {name for name, value in word_gradients.items() if value == 0} == last_layer


def test_vectors_have_unit_norm(contrast: ContrastiveModel, gallery: RenderedScenes) -> None:
    """Texts and images have unit norm, and patches have a logit for every word."""
    images, scores = contrast.encode_image(gallery.pixels(range(3)))
    assert scores.shape == (3, GRID * GRID, len(WORDS))
    for vectors in (images, contrast.encode_text(captions_of(gallery.scene(1)))):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert vectors.shape[1] == TINY.width


def test_evaluation_counts_cells_with_exactly_the_right_words(
    contrast: ContrastiveModel, gallery: RenderedScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among cells on objects; one word too many or too few is wrong."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    scores = word_targets(scenes) * 2 - 1  # (scenes, patches, words)
    object_cells = [
        (number, cell)
        for number, scene in enumerate(scenes)
        for cell, words in enumerate(patch_labels(scene))
        if len(words) > 1
    ]
    scores[object_cells[0]] = 1
    scores[object_cells[1]] = -1
    images = contrast.encode_image(gallery.pixels(range(COUNT)))[0]
    monkeypatch.setattr(contrast, "encode_image", lambda _: (images, scores))
    metrics = evaluate_retrieval(contrast, gallery, COUNT)
    assert metrics["objects_described"] == pytest.approx(1 - 2 / len(object_cells), abs=1e-3)


def test_a_few_steps_reduce_both_losses(
    contrast: ContrastiveModel, gallery: RenderedScenes
) -> None:
    """On the same seven scenes."""
    scenes = [gallery.scene(index) for index in range(COUNT)]
    pixels = gallery.pixels(range(COUNT))
    optimizer = build_adamw(contrast, 1e-2, 0.05, betas=(0.9, 0.98))
    history = []
    for _ in range(30):
        losses = contrast.losses(pixels, scenes, random.Random(0))
        optimizer_step(losses.sum(), contrast, optimizer, 5e-3)
        history.append(losses.detach())
    assert bool((history[-1] < 0.8 * history[0]).all())


def test_the_schedule_warms_up_and_decays() -> None:
    """Linear warm-up to the peak, then cosine decay to zero."""
    rates = [cosine_schedule(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=1e-2)
    assert max(rates) == rates[9] == pytest.approx(1, rel=0.03)
    assert rates[50] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_only_matrices_have_weight_decay(contrast: ContrastiveModel) -> None:
    """Biases, norms and scales have none; every parameter is in one group."""
    matrices, vectors = build_adamw(contrast, 1e-3, 0.05, betas=(0.9, 0.98)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.05, 0.0)
    assert all(weight.ndim > 1 for weight in matrices["params"])
    assert all(weight.ndim <= 1 for weight in vectors["params"])
    count = len(list(contrast.parameters()))
    assert len(matrices["params"]) + len(vectors["params"]) == count
