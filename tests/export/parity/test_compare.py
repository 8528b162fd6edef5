"""Two implementations of one model: equal ones are called good, and a damaged one is caught where the damage is."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

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
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.images.decoding import open_image
from caldera.images.processor import ImageAspect, ImageProcessor
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress


def shown(photos: Path, count: int = 3) -> list[ParityCase]:
    """Return the first photos, each with a question."""
    return [
        ParityCase(photos / f"{number}.png", "what is there?", new_tokens=5)
        for number in range(count)
    ]


def with_transformers(folder: Path, theirs: Path, photos: Path) -> Parity:
    """Compare one folder in caldera with another in transformers."""
    assistant = load_model_folder(folder)
    return compare(
        Caldera(assistant), Transformers(theirs), shown(photos), assistant.processor, NoProgress()
    )


@pytest.mark.parametrize("aspect", ["square", "pad", "anyres"])
def test_transformers_is_called_good(
    tmp_path: Path, photos: Path, vision_folder: Path, language_folder: Path, aspect: ImageAspect
) -> None:
    """The same folder gives the same in all stages, and every answer is equal."""
    pinpoints = ((6, 12), (12, 6), (12, 12)) if aspect == "anyres" else ()
    made = assemble(vision_folder, language_folder, aspect=aspect, pinpoints=pinpoints, seed=3)
    save_model_folder(tmp_path / "m", made)

    found = with_transformers(tmp_path / "m", tmp_path / "m", photos)

    assert found.good
    assert found.counted == (3, 3)
    assert [gap.stage for gap in found.gaps] == ["file", *COMPARED]
    assert all(gap.largest <= gap.limit for gap in found.gaps)


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
    for name in ("ours", "theirs"):
        save_model_folder(tmp_path / name, assistant)
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    weights[weight].view(-1)[0] += 0.5
    save_file(weights, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})

    found = with_transformers(tmp_path / "ours", tmp_path / "theirs", photos)

    assert not found.good
    assert found.fault.startswith(f"{stage} differ by ")
    assert next(gap.stage for gap in found.gaps if not gap.good) == stage


def test_what_transformers_cannot_express_is_said(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """v1's linear projector has no place in its classes."""
    made = assemble(vision_folder, language_folder, projector="linear", seed=3)
    save_model_folder(tmp_path / "m", made)
    with pytest.raises(ModelFormatError, match=r"cannot express this model \(a single linear proj"):
        Transformers(tmp_path / "m")


@dataclass
class Changed:
    """Caldera's own work, with one thing changed on the way; another implementation in all else."""

    inner: Caldera
    change: Callable[[StageOutputs], StageOutputs] = lambda seen: seen
    otherwise: str | None = None
    colors: int = 0
    min_equal_answers: float = 0.5
    name: str = "changed"
    notes: tuple[str, ...] = ("seen",)
    limits: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPARED, 1e-6))

    def run(self, image: Image.Image, shown: ParityCase) -> StageOutputs:
        """Look, and change."""
        return self.change(self.inner.run(image, shown))

    def read(self, path: Path) -> np.ndarray | None:
        """Read a file with some colors off."""
        return np.asarray(open_image(path)).astype(int) + self.colors

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Say what was given."""
        return self.otherwise


def with_change(
    assistant: LlavaBundle,
    images: list[ParityCase],
    **changes: Any,  # noqa: ANN401 - fields of Changed
) -> Parity:
    """Compare an assistant with itself, changed."""
    own = Caldera(assistant)
    return compare(own, Changed(own, **changes), images, assistant.processor, NoProgress())


def nan_logits(seen: StageOutputs) -> StageOutputs:
    """Return logits of which one is no number."""
    logits = seen.logits.clone()
    logits[0, 0] = torch.nan
    return replace(seen, logits=logits)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda seen: replace(seen, pixels=seen.pixels + 1e-3), "pixels"),
        (lambda seen: replace(seen, features=seen.features[:, 1:]), "features"),
        (lambda seen: replace(seen, ids=(*seen.ids[:-1], 7)), "prompt"),
        (nan_logits, "logits"),
    ],
)
def test_a_changed_stage_is_not_good(
    assistant: LlavaBundle, photos: Path, change: Callable[[StageOutputs], StageOutputs], stage: str
) -> None:
    """Differences, other shapes, other prompts and what is no number all count."""
    found = with_change(assistant, shown(photos), change=change)
    assert not found.good
    assert next(gap.stage for gap in found.gaps if not gap.good) == stage
    assert found.notes == ("seen",)


def test_answers_must_be_equal_by_the_share_that_is_wanted(
    assistant: LlavaBundle, photos: Path
) -> None:
    """One of three may differ if half are wanted, and is explained; if all are, it may not."""

    def change(seen: StageOutputs) -> StageOutputs:
        first = float(seen.pixels.flatten()[0])
        return replace(seen, answer=(9, *seen.answer[1:])) if first == float(marked) else seen

    images = shown(photos)
    marked = Caldera(assistant).run(open_image(images[1].path), images[1]).pixels.flatten()[0]

    half, whole = (
        with_change(assistant, images, change=change, wanted=share) for share in (0.5, 1.0)
    )

    assert half.good
    assert half.counted == (2, 3)
    [other] = [answer for answer in half.answers if not answer.equal]
    assert other.image == "1.png"
    assert "part at token 1" in other.notes[0]
    assert "logits apart" in other.notes[0]
    assert not whole.good
    assert whole.fault == "2 of 3 answers are equal, 100% are wanted"


def test_odd_images_decide_only_where_they_are_read_alike(
    assistant: LlavaBundle, photos: Path
) -> None:
    """One that is known to be shaped otherwise is listed with the reason, and its differences do not count."""
    images = [
        *shown(photos, 1),
        ParityCase(photos / "1.png", "what?", informational=True, new_tokens=5),
    ]
    spoilt = {"change": lambda seen: replace(seen, pixels=seen.pixels + 1)}
    apart = with_change(assistant, images[1:], **spoilt, otherwise="it pads")
    alike = with_change(assistant, images[1:], **spoilt)
    given = with_change(assistant, images[:1], **spoilt, otherwise="it pads")
    assert apart.good
    assert apart.counted == (0, 0)
    assert apart.answers[0].notes == ("it pads",)
    assert not alike.good
    assert not given.good


def test_files_that_are_read_otherwise_are_noted(assistant: LlavaBundle, photos: Path) -> None:
    """A few levels are a JPEG decoder's; many are not."""
    assert with_change(assistant, shown(photos), colors=8).good
    far = with_change(assistant, shown(photos), colors=9)
    assert far.fault.startswith("file differ by 9 ")
    assert far.answers[0].notes[0] == "changed reads other colours, by up to 9 of 255"


def test_images_are_looked_at_first(tmp_path: Path, photos: Path) -> None:
    """None at all, and one that is not there, are refused before any model is loaded."""
    check_readable([photos / "0.png"])
    for paths in ([], [photos / "0.png", tmp_path / "lost.png"]):
        with pytest.raises(ImageError):
            check_readable(paths)
