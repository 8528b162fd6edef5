"""Every path that people give as a model is recognized, and the message says what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.errors import ModelFormatError
from caldera.formats.model_paths import PathKind, find_model, identify

CLIP = "openai/clip-vit-large-patch14-336"
LLAMA = {"model_type": "llama", "vocab_size": 9}


def write(folder: Path, **contents: object) -> Path:
    """Write files, named with `_` for `.`; text stays text, anything else becomes JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text(text)
    return folder


def original(folder: Path) -> Path:
    """Write the config of LLaVA's own code."""
    return write(folder, config_json={"model_type": "llava_llama", "mm_vision_tower": CLIP})


Example = tuple[PathKind, Callable[[Path], Path | str], str]

EXAMPLES: dict[str, Example] = {
    "an original": (
        "original",
        lambda root: write(original(root / "llava-v1.5-7b"), pytorch_model_bin=""),
        rf"LLaVA's own code; convert it: caldera import \S+/llava-v1.5-7b --vision TOWER --template vicuna_v1 .*{CLIP}",
    ),
    "an original projector": (
        "original",
        lambda root: write(original(root / "o"), mm_projector_bin=""),
        r"--base LANGUAGE_MODEL --vision TOWER --template plain",
    ),
    "an original adapter": (
        "original",
        lambda root: write(
            original(root / "o"), non_lora_trainables_bin="", adapter_config_json={}
        ),
        r"--base LANGUAGE_MODEL --vision TOWER --template vicuna_v1",
    ),
    "an adapter of caldera": (
        "caldera adapter",
        lambda root: write(root / "run/adapter", caldera_adapter_json={}, adapter_config_json={}),
        r"is an adapter, which needs its base model; merge the two: caldera train merge \S+/adapter --model BASE",
    ),
    "a merged adapter": (
        "caldera adapter",
        lambda root: write(
            write(root / "run/model", caldera_json={}).parent / "adapter", caldera_adapter_json={}
        ),
        r"its run has merged it already: use \S+/run/model",
    ),
    "an adapter of peft": (
        "peft adapter",
        lambda root: write(
            root / "lora",
            adapter_config_json={"base_model_name_or_path": "org/base"},
            config_json={"model_type": "llava"},
        ),
        r"LoRA adapter of peft for org/base.*merge_and_unload",
    ),
    "an unfinished run": (
        "unfinished run",
        lambda root: write(root / "run", stage_json={}),
        r"is a run that is not finished.*--resume\)$",
    ),
    "an unfinished recipe": (
        "unfinished run",
        lambda root: write(write(root / "r/pretrain/model", caldera_json={}).parents[1], recipe_json={}),
        r"its stage 1 is finished: \S+/r/pretrain/model",
    ),
    "a checkpoint": (
        "checkpoint",
        lambda root: write(root / "run/checkpoints/step-7", state_json={}, manifest_json={}),
        r"is a checkpoint.*resume the run \S+/run to finish it",
    ),
    "a checkpoint of a finished run": (
        "checkpoint",
        lambda root: write(
            write(root / "run/model", caldera_json={}).parent / "checkpoints/step-7",
            state_json={},
            manifest_json={},
        ),
        r"use the run's model, \S+/run/model",
    ),
    "the folder of checkpoints": (
        "checkpoint",
        lambda root: write(write(root / "run", stage_json={}) / "checkpoints"),
        r"resume the run \S+/run to finish it",
    ),
    "a GGUF file under any name": (
        "gguf",
        lambda root: write(root, model_dat="GGUF and more") / "model.dat",
        r"GGUF file, which llama.cpp runs.*caldera train pretrain --language \S+/model.dat",
    ),
    "a folder of GGUF files": (
        "gguf",
        lambda root: write(root / "gguf", mmproj_gguf="GGUF"),
        r"mmproj.gguf is a GGUF file",
    ),
    "a language model": (
        "language model",
        lambda root: write(root / "my llama", config_json=LLAMA),
        r"without a vision tower \(model_type 'llama'\).*import --language '\S+/my llama' --vision VISION_TOWER",
    ),
    "a vision tower": (
        "vision tower",
        lambda root: write(root / "vit", config_json={"model_type": "clip_vision_model", "patch_size": 14}),
        r"without a language model.*--vision \S+/vit --language LANGUAGE_MODEL",
    ),
    "a convolutional vision tower": (
        "vision tower",
        lambda root: write(root / "cnn", config_json={"model_type": "resnet", "num_channels": 3}),
        r"without a language model.*--vision \S+/cnn --language LANGUAGE_MODEL",
    ),
    "CLIP with both towers": (
        "vision tower",
        lambda root: write(
            root / "clip", config_json={"model_type": "clip", "vision_config": {}, "text_config": {}}
        ),
        r"--vision \S+/clip",
    ),
    "another model": (
        "other model",
        lambda root: write(
            root / "qwen", config_json={"model_type": "qwen2_vl", "vision_config": {}, "vocab_size": 9}
        ),
        r"is a model of type 'qwen2_vl'; caldera reads llava, llava_next, llava_onevision of",
    ),
    "a pickle": (
        "file",
        lambda root: write(root, config_json=LLAMA, model_bin="") / "model.bin",
        r"is a pickle of torch, which is not opened here.*give its folder",
    ),
    "a file of weights": (
        "file",
        lambda root: write(root, model_safetensors="") / "model.safetensors",
        r"is a file of weights; give a model folder",
    ),
    "an empty folder": ("empty folder", lambda root: write(root / "new"), "is empty"),
    "a folder of runs": (
        "other folder",
        lambda root: write(root / "runs/a/model", caldera_json={}).parents[1],
        r"give one below it: \S+/runs/a/model$",
    ),
    "a cache of the Hub": (
        "other folder",
        lambda root: write(root / "c/snapshots/12ab", config_json=LLAMA).parents[1],
        r"give one below it: \S+/snapshots/12ab$",
    ),
    "a folder of anything": (
        "other folder",
        lambda root: write(root / "f", notes_txt="hi"),
        r"has no caldera.json and no config.json",
    ),
    "a name on the Hub, as a path": (
        "missing",
        lambda root: Path("llava-hf/llava-1.5-7b-hf"),
        r"does not exist; check the path, or give hf://llava-hf/llava-1.5-7b-hf for a model",
    ),
    "a name without its organization": (
        "missing",
        lambda root: "llava-1.5-7b-hf",
        r"does not exist; did you mean llava-hf/llava-1.5-7b-hf on the Hugging Face Hub\?",
    ),
    "a word": (
        "missing",
        lambda root: "zyzzyva-9b",
        r"does not exist; check the path, or give ORG/NAME for a model on the Hugging Face Hub",
    ),
    "another address": ("missing", lambda root: "https://x.org/m", "is a web address"),
    "a misspelled path": (
        "missing",
        lambda root: str(write(root / "demo").parent / "dmo"),
        r"does not exist; did you mean \S+/demo\?",
    ),
    "a missing path": ("missing", lambda root: str(root / "x"), "does not exist; check the path"),
}  # fmt: skip
"""By name: the kind, a function that makes the path below a folder, and what its message must hold."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_path_that_is_no_model_is_recognized(name: str, tmp_path: Path) -> None:
    """The kind is found by content, and the message names the command or the folder that helps, in one line."""
    kind, make, message = EXAMPLES[name]
    path = make(tmp_path)
    assert identify(path).kind == kind
    with pytest.raises(ModelFormatError, match=message) as caught:
        find_model(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == identify(path).advice


@pytest.mark.parametrize("result", ["", "model", "finetune/model"])
def test_a_runs_folder_means_its_model(tmp_path: Path, result: str) -> None:
    """The folder of a stage, of a scene recipe or of a paper's recipe stands for the model that it made."""
    run = write(tmp_path / "run", stage_json={})
    write(run / result, caldera_json={}, config_json={"model_type": "llava"})
    write(run / "pretrain/model", caldera_json={})
    assert find_model(run) == run / result


def test_names_decide_nothing(tmp_path: Path) -> None:
    """Whatever a folder of llava-hf is called, it is one."""
    for name in ("llava-lora", "checkpoints", "model.gguf"):
        folder = write(tmp_path / name, config_json={"model_type": "llava_next"})
        assert identify(folder).kind == "llava-hf"
        shutil.rmtree(folder)


@pytest.mark.parametrize("path", ["a" * 300, "~nobody-of-this-name/model"])
def test_an_impossible_path_is_one_line(path: str) -> None:
    """A name that the system cannot look up is an error of the model, not of Python."""
    with pytest.raises(ModelFormatError, match=r"^cannot read '.{1,40}: [^\n]*$"):
        find_model(path)
