"""The layout of a folder is detected by its content, and missing options are asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError, UsageError
from caldera.formats.importing.request import ImportRequest
from tests.formats.conftest import Write, hf_name, random_projector, run_import


def test_a_projector_file_next_to_complete_weights_is_ignored(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """LLaVA-1.5's folders hold mm_projector.bin next to complete weights, whose own projector is used."""
    folder = write_original()
    torch.save({k: v * 7 for k, v in random_projector().items()}, folder / "mm_projector.bin")
    assert run_import(tmp_path / "out", source=folder, vision=clip_folder).layout == "full"
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in random_projector().items():
        assert torch.equal(written[hf_name(name)], weight)


def test_an_ambiguous_layout_must_be_chosen(
    tmp_path: Path, write_original: Write, clip_folder: Path, vicuna_folder: Path
) -> None:
    """An adapter next to complete weights is ambiguous until the user chooses a layout."""
    folder = write_original()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(
        UsageError, match="could have several layouts: full, lora; choose one with --layout"
    ):
        run_import(tmp_path / "out", source=folder, vision=clip_folder)
    assert (
        run_import(tmp_path / "out", source=folder, vision=clip_folder, layout="full").layout
        == "full"
    )
    with pytest.raises(UsageError, match="is not 'projector': its files are of delta, full, lora"):
        run_import(tmp_path / "b", source=folder, base=vicuna_folder, layout="projector")


def test_a_missing_template_is_asked_for(
    tmp_path: Path, llava_hf: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Without --template the message has a likely one and where all are listed; for an unknown name the nearest."""
    with pytest.raises(ModelFormatError, match=r"--template NAME .*vicuna_v1; docs/templates.md"):
        run_import(tmp_path / "out", source=llava_hf, template=None)
    with pytest.raises(UsageError, match="did you mean 'vicuna_v1'"):
        run_import(tmp_path / "out", source=llava_hf, template="vicuna_v2")
    run_import(tmp_path / "out", source=llava_hf)
    with pytest.raises(UsageError, match="is a caldera model folder already"):
        run_import(tmp_path / "again", source=tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "vicuna_v1_original"),
        ({"transformers_version": "4.31.0"}, "vicuna_v1_original_4_31"),
        ({"model_type": "llava_mistral"}, "mistral_instruct_original"),
        ({"model_type": "llava_qwen"}, "qwen_original"),
        ({"tune_mm_mlp_adapter": True}, "plain_original"),
    ],
)
def test_the_template_of_llavas_own_code_is_suggested(
    tmp_path: Path, write_original: Write, changes: dict[str, object], name: str
) -> None:
    """The config of an original folder tells language model, stage and version, which most releases keep."""
    folder = write_original(**changes)
    with pytest.raises(UsageError, match=f"give --template {name} .*docs/templates.md"):
        ImportRequest(source=folder).require_template  # noqa: B018 - the property raises


def test_the_name_of_a_folder_decides_nothing(tmp_path: Path, vicuna_folder: Path) -> None:
    """A language model in a folder called llava-lora is a language model."""
    vicuna_folder.replace(tmp_path / "llava-lora")
    with pytest.raises(ModelFormatError, match=r"is a language model .*model_type 'llama'"):
        run_import(tmp_path / "out", source=tmp_path / "llava-lora")
