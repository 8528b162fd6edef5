"""A llava-hf folder whose chat template is a known one is used as it is; everything else is imported first."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from caldera.errors import ModelFormatError
from caldera.formats.model_folder import load_model_folder
from caldera.formats.open_model import load_model
from caldera.templates.jinja import chat_template
from caldera.templates.registry import TEMPLATES
from tests.formats.conftest import run_import

VICUNA = chat_template(TEMPLATES["vicuna_v1"], starts=True)


def set_template(folder: Path, file: str, content: object) -> Path:
    """Make `content` the only chat template of a folder."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if file == "chat_template.jinja":
        (folder / file).write_text(str(content))
    else:
        settings = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps({**settings, "chat_template": content}))
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", VICUNA),
        ("chat_template.json", VICUNA),
        ("processor_config.json", VICUNA),
        ("tokenizer_config.json", VICUNA),
        ("tokenizer_config.json", [{"name": "default", "template": VICUNA}]),
    ],
)
def test_a_known_template_is_found_wherever_it_is(
    llava_hf: Path, file: str, content: object
) -> None:
    """Transformers has kept chat templates in four files, one of which may hold several by name."""
    assert load_model(set_template(llava_hf, file, content)).card.template == "vicuna_v1"


def test_a_folder_of_llava_hf_equals_its_import(tmp_path: Path, llava_hf: Path) -> None:
    """Weights and metadata are those of the folder that `caldera import` writes, with or without --template."""
    direct = load_model(set_template(llava_hf, "chat_template.jinja", VICUNA))
    run_import(tmp_path / "imported", source=llava_hf, template=None)
    imported = load_model_folder(tmp_path / "imported")
    assert imported.card.model_copy(update={"source_digests": {}, "sources": {}}) == direct.card
    assert imported.processor == direct.processor
    expected, loaded = imported.model.state_dict(), direct.model.state_dict()
    assert list(expected) == list(loaded)
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


def test_tiles_are_loaded_directly(llava_next: Path) -> None:
    """LLaVA-NeXT's canvases and newline embedding come from the folder."""
    assistant = load_model(set_template(llava_next, "chat_template.jinja", VICUNA))
    assert assistant.card.pinpoints == ((12, 6), (6, 18))
    weights = load_file(llava_next / "model.safetensors")
    newline = assistant.model.projector.image_newline
    assert newline is not None
    assert torch.equal(newline, weights["image_newline"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (VICUNA.replace("curious user", "nosy user"), r"other text .*the nearest: vicuna_v1"),
        ("{{ cycler.__init__.__globals__.os.system('touch never') }}", "it uses 'system'"),
        ("{% for m in messages %}", "syntax error"),
        (None, "it has none"),
    ],
)
def test_a_template_that_must_be_guessed_is_asked_for(
    llava_hf: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, reason: str
) -> None:
    """No code in a template is run, and the message names the command with the nearest templates (fault E4)."""
    monkeypatch.chdir(llava_hf)
    set_template(llava_hf, "chat_template.json", content)
    message = rf"chat template of .*{reason}"
    with pytest.raises(ModelFormatError, match=message) as caught:
        load_model(llava_hf)
    assert f"choose one: caldera import {llava_hf} --template NAME --out FOLDER" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert not (llava_hf / "never").exists()


def test_quantized_weights_are_rejected(llava_hf: Path) -> None:
    """A folder of another bit width is named by its setting, which is cut (fault E7)."""
    set_template(llava_hf, "chat_template.jinja", VICUNA)
    config = json.loads((llava_hf / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (llava_hf / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelFormatError, match=r"has quantization_config \{'quant_method': 'awq'.{,20}\.\.\."
    ):
        load_model(llava_hf)


def test_pickles_are_converted_first(llava_hf: Path) -> None:
    """A folder with torch's files alone is not loaded directly; the message names the converter (fault E1)."""
    set_template(llava_hf, "chat_template.jinja", VICUNA)
    weights = load_file(llava_hf / "model.safetensors")
    torch.save(weights, llava_hf / "pytorch_model.bin")
    (llava_hf / "model.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"is a pickle.*convert it with caldera import"):
        load_model(llava_hf)
