"""Exports and comparisons by name; an export is never called good before it was compared."""

from pathlib import Path

import numpy as np
import pytest

from caldera.errors import ImageError, UnknownNameError, UsageError
from caldera.export.export import (
    ExportConfig,
    ParityConfig,
    compare_model,
    export_model,
    parity_json,
)
from caldera.export.parity import llama_cpp_side
from caldera.export.parity.sample_images import ODD, QUESTIONS, SCENES, drawn_images, given_images
from caldera.formats.model_folder import save_model_folder
from caldera.images.decoding import open_image
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress


def test_names_are_exact(tmp_path: Path) -> None:
    """A typo is answered with the nearest name."""
    with pytest.raises(UnknownNameError, match="did you mean 'gguf'"):
        export_model("ggfu", ExportConfig(folder=tmp_path, out=tmp_path / "out"), NoProgress())
    with pytest.raises(UnknownNameError, match="did you mean 'transformers'"):
        compare_model(ParityConfig(folder=tmp_path, against="transformer"), NoProgress())


def test_without_llama_cpp_files_are_written_but_not_called_good(
    tmp_path: Path, assistant: LlavaBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says that they stand, what is missing, and the command that compares them."""
    monkeypatch.setattr(llama_cpp_side, "find_spec", lambda name: None)
    save_model_folder(tmp_path / "m", assistant)
    with pytest.raises(
        UsageError, match=r"not compared.*pip install 'caldera\[reference\]'.*caldera parity"
    ):
        export_model(
            "gguf", ExportConfig(folder=tmp_path / "m", out=tmp_path / "out"), NoProgress()
        )
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "mmproj.gguf",
        "model.gguf",
    ]
    with pytest.raises(UsageError, match=r"pip install 'caldera\[reference\]'"):
        compare_model(
            ParityConfig(folder=tmp_path / "m", against="gguf", gguf=tmp_path / "out"), NoProgress()
        )


def test_what_a_format_has_no_use_for_is_refused(
    tmp_path: Path, assistant: LlavaBundle, photos: Path
) -> None:
    """An original layout is never called quantized or compared; nothing is written."""
    save_model_folder(tmp_path / "m", assistant)
    image = sorted(photos.iterdir())[0]
    asked = ExportConfig(
        folder=tmp_path / "m",
        out=tmp_path / "out",
        kind="q8_0",
        class_token="first",
        images=[image],
    )
    with pytest.raises(UsageError, match="--type and --class-token and --images would not be used"):
        export_model("original", asked, NoProgress())
    assert not (tmp_path / "out").exists()


def test_a_image_that_cannot_be_used_stops_before_anything_is_written(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """The first thing that is looked at is what the user gave."""
    save_model_folder(tmp_path / "m", assistant)
    lost = ExportConfig(folder=tmp_path / "m", out=tmp_path / "out", images=[tmp_path / "lost.png"])
    with pytest.raises(ImageError, match=r"lost\.png does not exist"):
        export_model("gguf", lost, NoProgress())
    assert not (tmp_path / "out").exists()


def test_a_comparison_on_a_users_images_is_json(
    tmp_path: Path, assistant: LlavaBundle, photos: Path
) -> None:
    """Every stage, every answer, the count, and the verdict."""
    save_model_folder(tmp_path / "m", assistant)
    given = [photos / "0.png", photos / "4.png"]
    found = parity_json(
        compare_model(
            ParityConfig(folder=tmp_path / "m", against="transformers", images=given),
            NoProgress(),
        )
    )
    assert found["good"] is True
    assert found["equal_answers"] == found["counted_answers"] == 2
    assert [answer["question"] for answer in found["answers"]] == list(QUESTIONS[:2])
    assert {gap["stage"] for gap in found["gaps"]} >= {"pixels", "features", "logits"}


def test_drawn_images_are_scenes_and_odd_files(tmp_path: Path) -> None:
    """Twenty scenes of their own size, then every odd kind; all can be decoded, and drawing again gives the same."""
    drawn = drawn_images(tmp_path)
    assert [one.informational for one in drawn] == [False] * SCENES + [True] * len(ODD)
    sizes = {one.path.name: open_image(one.path).size for one in drawn}
    assert {sizes[f"scene-{number:02d}.png"] for number in range(SCENES)} == {(224, 224)}
    assert sizes["thin.png"] == (1, 1000)
    assert sizes["turned.jpg"] == (112, 224)
    assert {one.question for one in given_images([one.path for one in drawn])} == set(QUESTIONS)
    (tmp_path / "again").mkdir()
    for one, again in zip(drawn, drawn_images(tmp_path / "again"), strict=True):
        first, second = (np.asarray(open_image(each.path)) for each in (one, again))
        assert np.array_equal(first, second)


def test_the_originals_layout_is_written_with_what_to_know(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """There is nothing here that runs it, so it is not compared; the notes say how it is used."""
    save_model_folder(tmp_path / "m", assistant)
    found = export_model(
        "original", ExportConfig(folder=tmp_path / "m", out=tmp_path / "llava-tiny"), NoProgress()
    )
    assert found.parity is None
    assert any("'vicuna_v1'" in note for note in found.notes)
    assert (tmp_path / "llava-tiny" / "config.json").is_file()
