"""A folder in LLaVA's own layout is compared with the model that it was exported from."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from caldera.errors import ModelFormatError, UsageError
from caldera.export.export import ParityConfig, compare_model
from caldera.export.parity.compare import Parity
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from caldera.formats.original.export import write_original
from caldera.images.anyres import ASPECTS, ImageAspect
from caldera.progress import NoProgress


def export(
    folder: Path,
    vision: Path,
    language: Path,
    aspect: ImageAspect = "pad",
    template: str = "vicuna_v1",
) -> None:
    """Write a model folder, `m`, and its export, `llava`."""
    save_model_folder(folder / "m", assemble(vision, language, aspect=aspect, template=template))
    write_original(folder / "m", folder / "llava")


def compare_export(folder: Path, photos: Path, python: Path | None = None) -> Parity:
    """Compare `m` with `llava`."""
    images = [photos / "0.png", photos / "4.png"]
    config = ParityConfig(
        folder=folder / "m",
        against="original",
        original=folder / "llava",
        images=images,
        python=python,
    )
    return compare_model(config, NoProgress())


@pytest.mark.parametrize("aspect", ASPECTS)
def test_an_export_agrees_bit_for_bit(
    tmp_path: Path, vision_folder: Path, language_folder: Path, photos: Path, aspect: ImageAspect
) -> None:
    """Every stage but the logits is equal; the notes say what was compared."""
    export(tmp_path, vision_folder, language_folder, aspect)
    parity = compare_export(tmp_path, photos)
    assert parity.against == "the re-imported folder"
    assert parity.good
    exact = {stage.stage: stage.max_difference for stage in parity.stages}
    assert exact.pop("logits") < 1e-6
    assert set(exact.values()) == {0.0}
    assert "LLaVA's own code was not run" in parity.notes[0]
    tokens = len(json.loads((tmp_path / "llava" / "tokenizer.json").read_text())["model"]["vocab"])
    assert f"those of LLaVA's {tokens} tokens" in parity.notes[1]


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        ("model.mm_projector.2.bias", "image tokens"),
        ("model.norm.weight", "logits"),
        ("image_aspect_ratio", "pixels"),
        ("mm_vision_select_layer", "features"),
    ],
)
def test_a_fault_of_the_files_is_found_where_it_originates(
    tmp_path: Path, vision_folder: Path, language_folder: Path, photos: Path, fault: str, stage: str
) -> None:
    """A changed weight or setting is the first stage that differs."""
    export(tmp_path, vision_folder, language_folder)
    if "." in fault:
        file = tmp_path / "llava" / "model.safetensors"
        weights = load_file(file)
        weights[fault] = weights[fault] + torch.linspace(0, 1, len(weights[fault]))
        save_file(weights, file)
    else:
        file = tmp_path / "llava" / "config.json"
        changed = {"image_aspect_ratio": "square", "mm_vision_select_layer": -1}[fault]
        file.write_text(json.dumps(json.loads(file.read_text()) | {fault: changed}))
    parity = compare_export(tmp_path, photos)
    assert next(entry.stage for entry in parity.stages if not entry.good) == stage
    assert parity.fault.startswith(f"{stage} differ")


def test_a_python_without_llavas_code_is_named(
    tmp_path: Path, vision_folder: Path, language_folder: Path, photos: Path
) -> None:
    """The last words of its process are the reason; a program that cannot be started is wrong usage."""
    export(tmp_path, vision_folder, language_folder)
    with pytest.raises(
        ModelFormatError, match=rf"failed in {sys.executable}: .*No module named 'llava'"
    ):
        compare_export(tmp_path, photos, Path(sys.executable))
    with pytest.raises(UsageError, match=r"lost/python cannot be started: No such file"):
        compare_export(tmp_path, photos, tmp_path / "lost" / "python")


def test_a_missing_folder_is_requested(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """The message names the option and the command that writes the folder."""
    export(tmp_path, vision_folder, language_folder)
    with pytest.raises(
        UsageError, match="pass --original FOLDER, which caldera export --to original"
    ):
        compare_model(ParityConfig(folder=tmp_path / "m", against="original"), NoProgress())
