"""Models made from backbones that know drawings only warn once about photos, and never about drawings."""

import logging
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.formats.photo_warning import PhotoWarning
from caldera.formats.weight_names import digest_folder
from caldera.inference.engine import Engine
from caldera.model.bundle import LlavaBundle
from caldera.scenes.backbones import BACKBONES, FORMER_DIGESTS
from caldera.scenes.coco_folder import encode_jpeg
from tests.instructions.annotated_scenes import sample_scenes

SHIPPED = {"vision": digest_folder(BACKBONES["scenes-vit"]), "language": "0" * 64, "run": "1" * 64}


@pytest.fixture
def photo() -> Image.Image:
    """Return an image with the noise of a photo."""
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def drawing() -> Image.Image:
    """Return a drawn scene."""
    return Image.open(BytesIO(encode_jpeg(sample_scenes(1, seed=1)[0])))


def test_a_photo_is_warned_of_once(
    photo: Image.Image, drawing: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """Drawings are not; the message names the backbone and what to use."""
    warning = PhotoWarning(SHIPPED)
    warning.check_image(drawing)
    assert not caplog.records
    for _ in range(3):
        warning.check_image(photo)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "made from scenes-vit, which saw drawn scenes only" in record.getMessage()
    assert "efficientnet-lite0" in record.getMessage()


def test_other_models_are_not_warned_of(
    photo: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither are models without digests."""
    for digests in ({}, {"vision": "2" * 64}):
        PhotoWarning(digests).check_image(photo)
    assert not caplog.records


def test_models_of_earlier_versions_are_known(
    photo: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """By the digests of the backbones that were shipped then."""
    for number, digest in enumerate(FORMER_DIGESTS, start=1):
        PhotoWarning({"vision": digest}).check_image(photo)
        assert len(caplog.records) == number


def test_training_data_are_judged_by_their_majority(
    photo: Image.Image, drawing: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A few photos among drawings are no reason; unreadable files are left to the training."""
    paths = [tmp_path / f"{number}.png" for number in range(100)]
    for number, path in enumerate(paths):
        (photo if number % 4 == 0 else drawing).save(path)
    PhotoWarning(SHIPPED).check_files([*paths, tmp_path / "missing.png"])
    assert not caplog.records
    PhotoWarning(SHIPPED).check_files(paths[::4])
    assert (
        caplog.records[0]
        .getMessage()
        .startswith("25 of 25 images of the data look like photos, but the model")
    )


def test_the_engine_checks_the_images_of_chat_and_server(
    assistant: LlavaBundle, photo: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each engine; an assistant made from other towers is silent."""
    for digests, expected in (({}, 0), (SHIPPED, 1)):
        card = assistant.card.model_copy(update={"source_digests": digests})
        with Engine(replace(assistant, card=card)) as engine:
            for _ in range(2):
                engine.prepare_image(photo)
        messages = [record.getMessage() for record in caplog.records]
        assert sum("saw drawn scenes only" in message for message in messages) == expected
