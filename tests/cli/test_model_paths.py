"""Every command that takes a model says the same about a path that is none, before it loads anything."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import caldera
from caldera.errors import ModelFormatError
from caldera.formats.model_folder import save_model_folder
from caldera.formats.model_paths import identify
from caldera.model.bundle import LlavaBundle
from caldera.templates.jinja import chat_template
from caldera.templates.registry import TEMPLATES
from tests.cli.conftest import CommandResult
from tests.formats.conftest import write_llava_hf

Command = Callable[..., CommandResult]

COMMANDS = {
    "chat": "chat MODEL --prompt hi",
    "serve": "serve MODEL --no-web",
    "second model": "serve GOOD --compare-with MODEL",
    "export gguf": "export MODEL --to gguf --out out",
    "export original": "export MODEL --to original --out out",
    "parity": "parity MODEL --against transformers",
    "evaluate": "evaluate custom --model MODEL --questions questions.jsonl --out out",
    "finetune": "train finetune --model MODEL --data data.json --out out",
    "recipe": "train recipe llava_15_7b --stage1-model MODEL --data data.json --out out",
    "merge": "train merge adapter --model MODEL --out out",
    "inspect": "data inspect data.json --model MODEL",
    "import": "import MODEL --out out",
}
"""A command line for each command and option that takes a model."""

KINDS: dict[str, str] = {
    "missing": "",
    "run/stage.json": "{}",
    "run/checkpoints/step-1/state.json": "{}",
    "adapter/caldera_adapter.json": "{}",
    "adapter/adapter_config.json": "{}",
    "model.gguf": "GGUF",
    "model.safetensors": "",
    "language/config.json": '{"model_type": "llama", "vocab_size": 9}',
    "vision/config.json": '{"model_type": "siglip_vision_model", "patch_size": 9}',
    "original/config.json": '{"model_type": "llava_llama", "mm_vision_tower": "a/b"}',
}
"""Files that make up one path of each kind, and their content."""

PATHS = (
    "missing", "run", "run/checkpoints/step-1", "adapter", "model.gguf",
    "model.safetensors", "language", "vision", "original", "empty",
)  # fmt: skip


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assistant: LlavaBundle) -> Path:
    """A working folder with a path of each kind, a model, a run, and what the commands need beside a model."""
    monkeypatch.chdir(tmp_path)
    for name, content in KINDS.items():
        if content or name == "model.safetensors":
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
    (tmp_path / "run/checkpoints/step-1/manifest.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    save_model_folder(tmp_path / "finished" / "model", assistant)
    (tmp_path / "finished" / "stage.json").write_text("{}")
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    record = {
        "id": "1",
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat?"},
            {"from": "gpt", "value": "a dog"},
        ],
    }
    (tmp_path / "data.json").write_text(json.dumps([record]))
    question = {"id": "1", "image": "a.png", "question": "what?", "answer": "a dog"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_a_path_is(name: str, paths: Path, call: Command) -> None:
    """Each kind of path is exit code 3 and one line, which is the same for all commands; nothing is written."""
    # The first model of a comparison is opened each time.
    for path in PATHS[:2] if "GOOD" in COMMANDS[name] else PATHS:
        words = COMMANDS[name].replace("MODEL", path).replace("GOOD", "finished").split()
        if name == "import" and path == "original":
            continue  # what import is for
        result = call(*words)
        assert result.returncode == 3, (path, result.stderr)
        assert result.stderr.splitlines()[-1] == f"error: {identify(path).advice}"
        assert result.stdout == ""
        assert not (paths / "out" / "model").exists()
        assert not (paths / "out" / "config.json").exists()


def test_python_says_the_same(paths: Path) -> None:
    """`caldera.load` raises an exception with the text that the commands print."""
    for path in PATHS:
        with pytest.raises(ModelFormatError) as caught:
            caldera.load(path)
        assert str(caught.value) == identify(path).advice


@pytest.mark.parametrize(
    "line",
    [
        "chat hub --prompt hi --dtype float32",
        "data inspect data.json --model hub --record 1",
        "export hub --to original --out out",
        "evaluate custom --model finished --questions questions.jsonl --out out --dtype float32",
        "train finetune --model finished --data data.json --out out --set max_steps=1 --dtype float32",
    ],
)
def test_a_run_and_a_llava_hf_folder_are_models(
    line: str, paths: Path, call: Command, assistant: LlavaBundle
) -> None:
    """The folder of a finished run, and one of llava-hf with a known chat template, are used as they are."""
    if "hub" in line:
        folder = write_llava_hf(paths / "hub", assistant.tokenizer)
        jinja = chat_template(TEMPLATES["vicuna_v1"], starts=True)
        (folder / "chat_template.jinja").write_text(jinja)
    result = call(*line.split())
    assert result.returncode == 0, result.stderr
