"""Exports and comparisons by name; an export is never called good before it was compared."""

import re
import sys
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
from caldera.export.parity.sample_images import (
    NUM_SCENES,
    QUESTIONS,
    UNUSUAL_FILES,
    build_cases,
    draw_cases,
)
from caldera.formats.model_folder import save_model_folder
from caldera.images.decoding import open_image
from caldera.model.bundle import LlavaBundle
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
    """The note names the files, what is missing, and the command that compares them."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    save_model_folder(tmp_path / "m", assistant)
    config = ExportConfig(folder=tmp_path / "m", out=tmp_path / "out")
    report = export_model("gguf", config, NoProgress())
    assert (report.parity, report.known_fault) == (None, "")
    [note] = report.notes
    assert re.search(r"not compared.*pip install 'caldera\[reference\]'.*caldera parity", note)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mmproj.gguf",
        "model.gguf",
    ]
    with pytest.raises(UsageError, match=r"pip install 'caldera\[reference\]'"):
        compare_model(
            ParityConfig(folder=tmp_path / "m", against="gguf", gguf=tmp_path / "out"), NoProgress()
        )


def test_options_that_a_format_does_not_use_are_rejected(
    tmp_path: Path, assistant: LlavaBundle, photos: Path
) -> None:
    """An original layout is never called quantized or compared; nothing is written."""
    save_model_folder(tmp_path / "m", assistant)
    image = sorted(photos.iterdir())[0]
    config = ExportConfig(
        folder=tmp_path / "m",
        out=tmp_path / "out",
        dtype="q8_0",
        class_token="first",
        images=[image],
    )
    with pytest.raises(UsageError, match="--type and --class-token and --images would not be used"):
        export_model("original", config, NoProgress())
    assert not (tmp_path / "out").exists()


def test_options_of_another_implementation_are_rejected(tmp_path: Path) -> None:
    """No folder is named that is not compared."""
    config = ParityConfig(folder=tmp_path, against="transformers", original=tmp_path)
    with pytest.raises(UsageError, match="--original is not used with --against transformers"):
        compare_model(config, NoProgress())


def test_an_unusable_image_stops_the_export_before_anything_is_written(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """The user's images are checked first."""
    save_model_folder(tmp_path / "m", assistant)
    config = ExportConfig(
        folder=tmp_path / "m", out=tmp_path / "out", images=[tmp_path / "lost.png"]
    )
    with pytest.raises(ImageError, match=r"lost\.png does not exist"):
        export_model("gguf", config, NoProgress())
    assert not (tmp_path / "out").exists()


def test_a_comparison_on_a_users_images_is_json(
    tmp_path: Path, assistant: LlavaBundle, photos: Path
) -> None:
    """Every stage, every answer, the count, and the verdict."""
    save_model_folder(tmp_path / "m", assistant)
    images = [photos / "0.png", photos / "4.png"]
    report = parity_json(
        compare_model(
            ParityConfig(folder=tmp_path / "m", against="transformers", images=images),
            NoProgress(),
        )
    )
    assert report["good"] is True
    assert report["equal_answers"] == report["counted_answers"] == 2
    assert [answer["question"] for answer in report["answers"]] == list(QUESTIONS[:2])
    assert {stage["stage"] for stage in report["stages"]} >= {"pixels", "features", "logits"}


def test_drawn_cases_are_scenes_and_unusual_files(tmp_path: Path) -> None:
    """Twenty scenes of their own size, then every unusual file; all can be decoded, and drawing is repeatable."""
    cases = draw_cases(tmp_path)
    assert [case.informational for case in cases] == (
        [False] * NUM_SCENES + [True] * len(UNUSUAL_FILES)
    )
    sizes = {case.path.name: open_image(case.path).size for case in cases}
    assert {sizes[f"scene-{number:02d}.png"] for number in range(NUM_SCENES)} == {(224, 224)}
    assert sizes["thin.png"] == (1, 1000)
    assert sizes["turned.jpg"] == (112, 224)
    assert {case.question for case in build_cases([case.path for case in cases])} == set(QUESTIONS)
    (tmp_path / "again").mkdir()
    for first, second in zip(cases, draw_cases(tmp_path / "again"), strict=True):
        pixels, repeated = (np.asarray(open_image(case.path)) for case in (first, second))
        assert np.array_equal(pixels, repeated)


def test_the_original_layout_is_written_with_notes(tmp_path: Path, assistant: LlavaBundle) -> None:
    """The notes name the conversation mode, and the command that compares it."""
    save_model_folder(tmp_path / "m", assistant)
    report = export_model(
        "original", ExportConfig(folder=tmp_path / "m", out=tmp_path / "llava-tiny"), NoProgress()
    )
    assert report.parity is None
    assert any("--conv-mode vicuna_v1" in note for note in report.notes)
    command = (
        f"caldera parity {tmp_path / 'm'} --against original --original {tmp_path / 'llava-tiny'}"
    )
    assert any(note.endswith(command) for note in report.notes)
    assert (tmp_path / "llava-tiny" / "config.json").is_file()
