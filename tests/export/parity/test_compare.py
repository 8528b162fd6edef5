"""Comparison of two implementations: equal ones are good, and a difference is located at its stage."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from caldera.errors import ImageError, ModelFormatError
from caldera.export.parity.caldera_side import Caldera
from caldera.export.parity.compare import (
    COMPARED,
    Parity,
    ParityCase,
    StageOutputs,
    check_readable,
    compare,
)
from caldera.export.parity.transformers_side import Transformers
from caldera.formats.assemble import assemble
from caldera.formats.importing.import_model import import_model
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.anyres import ImageAspect
from caldera.images.decoding import open_image
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from tests.tiny_onevision import write_interleave, write_onevision


def cases(photos: Path, count: int = 3) -> list[ParityCase]:
    """Return cases about the first photos."""
    return [
        ParityCase(photos / f"{number}.png", "what is there?", new_tokens=5)
        for number in range(count)
    ]


def compare_with_transformers(folder: Path, other_folder: Path, photos: Path) -> Parity:
    """Compare one folder in caldera with another in transformers."""
    assistant = load_model_folder(folder)
    return compare(
        Caldera(assistant),
        Transformers(other_folder, "vicuna_v1"),
        cases(photos),
        assistant.processor,
        NoProgress(),
    )


@pytest.mark.parametrize("aspect", ["square", "pad", "anyres"])
def test_transformers_is_called_good(
    tmp_path: Path, photos: Path, vision_folder: Path, language_folder: Path, aspect: ImageAspect
) -> None:
    """The same folder gives the same outputs in all stages, and every answer is equal."""
    pinpoints = ((6, 12), (12, 6), (12, 12)) if aspect == "anyres" else ()
    model = assemble(vision_folder, language_folder, aspect=aspect, pinpoints=pinpoints, seed=3)
    save_model_folder(tmp_path / "m", model)

    parity = compare_with_transformers(tmp_path / "m", tmp_path / "m", photos)

    assert parity.good
    assert parity.num_equal == (3, 3)
    assert [stage.stage for stage in parity.stages] == ["file", *COMPARED]
    assert all(stage.max_difference <= stage.limit for stage in parity.stages)


@pytest.mark.parametrize("write", [write_onevision, write_interleave])
def test_onevision_and_interleave_are_called_good(
    tmp_path: Path,
    photos: Path,
    tokenizer: PreTrainedTokenizerFast,
    write: Callable[[Path, PreTrainedTokenizerFast], Path],
) -> None:
    """A folder of transformers, and the one that it is imported to, give the same outputs in all stages."""
    source = write(tmp_path / "source", tokenizer)
    import_model(
        ImportRequest(source=source, template="vicuna_v1"), tmp_path / "imported", NoProgress()
    )
    for folder in (source, tmp_path / "imported"):
        parity = compare_with_transformers(tmp_path / "imported", folder, photos)
        assert parity.good
        assert parity.num_equal == (3, 3)


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "features"),
        ("multi_modal_projector.linear_1.bias", "image tokens"),
        ("language_model.model.layers.1.self_attn.q_proj.weight", "logits"),
    ],
)
def test_one_changed_weight_is_caught_where_it_is(
    tmp_path: Path, photos: Path, assistant: LlavaBundle, weight: str, stage: str
) -> None:
    """The first stage that differs is the one that the weight belongs to."""
    for name in ("reference", "changed"):
        save_model_folder(tmp_path / name, assistant)
    weights = load_file(tmp_path / "changed" / "model.safetensors")
    weights[weight].view(-1)[0] += 0.5
    save_file(weights, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})

    parity = compare_with_transformers(tmp_path / "reference", tmp_path / "changed", photos)

    assert not parity.good
    assert parity.fault.startswith(f"{stage} differ by ")
    assert next(entry.stage for entry in parity.stages if not entry.good) == stage


def test_a_model_that_transformers_cannot_express_is_rejected(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """Its classes have no linear projector, as in LLaVA v1."""
    model = assemble(vision_folder, language_folder, projector="linear", seed=3)
    save_model_folder(tmp_path / "m", model)
    with pytest.raises(ModelFormatError, match=r"cannot express this model \(a single linear proj"):
        Transformers(tmp_path / "m", "vicuna_v1")


@dataclass
class ChangedSide:
    """Caldera's own side with one changed output, as another implementation."""

    inner: Caldera
    change: Callable[[StageOutputs], StageOutputs] = lambda outputs: outputs
    shape_difference: str | None = None
    color_offset: int = 0
    min_equal_answers: float = 0.5
    vocab_size: int | None = None
    name: str = "changed"
    notes: tuple[str, ...] = ("seen",)
    limits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPARED, 1e-6))

    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages and change the outputs."""
        return self.change(self.inner.run(image, case))

    def read(self, path: Path) -> np.ndarray | None:
        """Read a file with an offset of its colors."""
        return np.asarray(open_image(path)).astype(int) + self.color_offset

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Return the configured difference."""
        return self.shape_difference


def compare_changed(
    assistant: LlavaBundle,
    images: list[ParityCase],
    **changes: Any,  # noqa: ANN401 - fields of ChangedSide
) -> Parity:
    """Compare an assistant with itself, changed."""
    reference = Caldera(assistant)
    return compare(
        reference, ChangedSide(reference, **changes), images, assistant.processor, NoProgress()
    )


def nan_logits(outputs: StageOutputs) -> StageOutputs:
    """Set one logit to NaN."""
    logits = outputs.logits.clone()
    logits[0, 0] = torch.nan
    return replace(outputs, logits=logits)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda outputs: replace(outputs, pixels=outputs.pixels + 1e-3), "pixels"),
        (lambda outputs: replace(outputs, features=outputs.features[:, 1:]), "features"),
        (lambda outputs: replace(outputs, ids=(*outputs.ids[:-1], 7)), "prompt"),
        (nan_logits, "logits"),
    ],
)
def test_a_changed_stage_is_not_good(
    assistant: LlavaBundle, photos: Path, change: Callable[[StageOutputs], StageOutputs], stage: str
) -> None:
    """Differences, other shapes, other prompts and NaN all count."""
    parity = compare_changed(assistant, cases(photos), change=change)
    assert not parity.good
    assert next(entry.stage for entry in parity.stages if not entry.good) == stage
    assert parity.notes == ("seen",)


def test_rows_that_the_other_side_lacks_are_not_compared(
    assistant: LlavaBundle, photos: Path
) -> None:
    """With a vocabulary size the logits behind it are cut on both sides, without it a narrower side differs."""

    def change(outputs: StageOutputs) -> StageOutputs:
        return replace(outputs, logits=outputs.logits[:, :300])

    images = cases(photos)
    assert compare_changed(assistant, images, change=change, vocab_size=300).good
    assert compare_changed(assistant, images, change=change).fault.startswith(
        "logits differ by inf"
    )


def test_the_required_fraction_of_answers_must_be_equal(
    assistant: LlavaBundle, photos: Path
) -> None:
    """One of three may differ if half are required, and is explained; if all are, it may not."""

    def change(outputs: StageOutputs) -> StageOutputs:
        if float(outputs.pixels.flatten()[0]) == float(first_pixel):
            return replace(outputs, answer=(9, *outputs.answer[1:]))
        return outputs

    images = cases(photos)
    first_pixel = Caldera(assistant).run(open_image(images[1].path), images[1]).pixels.flatten()[0]

    lenient, strict = (
        compare_changed(assistant, images, change=change, min_equal_answers=fraction)
        for fraction in (0.5, 1.0)
    )

    assert lenient.good
    assert lenient.num_equal == (2, 3)
    [different] = [answer for answer in lenient.answers if not answer.equal]
    assert different.image == "1.png"
    assert "diverge at token 1" in different.notes[0]
    assert "logits in caldera" in different.notes[0]
    assert not strict.good
    assert strict.fault == "2 of 3 answers are equal, 100% are required"


def test_informational_images_decide_only_without_a_known_difference(
    assistant: LlavaBundle, photos: Path
) -> None:
    """One with a known difference in shape is listed with the reason, and its differences do not count."""
    images = [
        *cases(photos, 1),
        ParityCase(photos / "1.png", "what?", informational=True, new_tokens=5),
    ]
    change = {"change": lambda outputs: replace(outputs, pixels=outputs.pixels + 1)}
    accepted_difference = {"shape_difference": "it pads"}
    accepted = compare_changed(assistant, images[1:], **change, **accepted_difference)
    unexplained = compare_changed(assistant, images[1:], **change)
    deciding = compare_changed(assistant, images[:1], **change, **accepted_difference)
    assert accepted.good
    assert accepted.num_equal == (0, 0)
    assert accepted.answers[0].notes == ("it pads",)
    assert not unexplained.good
    assert not deciding.good


def test_files_that_are_decoded_differently_are_noted(assistant: LlavaBundle, photos: Path) -> None:
    """A few levels are a JPEG decoder's; many are not."""
    assert compare_changed(assistant, cases(photos), color_offset=8).good
    parity = compare_changed(assistant, cases(photos), color_offset=9)
    assert parity.fault.startswith("file differ by 9 ")
    assert parity.answers[0].notes[0] == "changed reads other colors, by up to 9 of 255"


def test_images_are_checked_first(tmp_path: Path, photos: Path) -> None:
    """An empty list and a missing file are rejected before any model is loaded."""
    check_readable([photos / "0.png"])
    for paths in ([], [photos / "0.png", tmp_path / "lost.png"]):
        with pytest.raises(ImageError):
            check_readable(paths)
