"""Recognition of what a path is: a model that can be loaded, or something else, with what to do about it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from caldera.errors import ModelFormatError, nearest_name, shorten_value
from caldera.files.hub import hub_source
from caldera.formats.chat_template import require_known_template
from caldera.formats.config import read_json
from caldera.formats.hub_models import (
    RELEASED_TEMPLATES,
    local_folder,
    released_template,
    shown_name,
)
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.original.config import is_original
from caldera.formats.safetensors_files import TORCH_SUFFIXES
from caldera.formats.tokenizer import load_tokenizer
from caldera.formats.weight_files import has_weights
from caldera.formats.weight_merging import ADAPTER_CONFIG

PathKind = Literal[
    "caldera", "llava-hf", "original", "caldera adapter", "peft adapter", "unfinished run", "checkpoint", "gguf",
    "language model", "vision tower", "other model", "file", "missing", "empty folder", "other folder",
]  # fmt: skip

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
CALDERA_ADAPTER = "caldera_adapter.json"

LLAVA_HF_TYPES = ("llava", "llava_next", "llava_onevision")
"""Values of `model_type` in llava-hf folders."""

_RUN_MODELS = ("model", "finetune/model")
"""Folder of the result in a run's folder: of a stage or scene recipe, and of a paper's recipe."""

_RUN_FILES = ("stage.json", "recipe.json", "checkpoints")
"""Names of which every run's folder has one."""

_STEP_FILES = ("state.json", "manifest.json")
"""Files that every checkpoint has."""

_WEIGHT_SUFFIXES = (".safetensors", ".ckpt", *TORCH_SUFFIXES)
_VISION_SETTINGS = {"patch_size", "num_channels", "pretrained_cfg"}
"""Settings in the config of a vision tower: of ViTs, of convolutional ones, and of timm's."""

_WEB_ADDRESS = re.compile(r"^([a-z]{2,}):/{1,2}")
"""Start of a web address, also of one that a Path has shortened."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@.+)?")
_MAX_LISTED = 3
"""Folders that a message lists."""


@dataclass(frozen=True, slots=True)
class ModelPath:
    """A path and its kind."""

    kind: PathKind
    path: Path
    """The folder itself; for a run, that of its model."""

    advice: str = ""
    """What it is and what to do, in one line; empty for a folder that can be loaded."""


def find_model(path: str | Path) -> Path:
    """Return the model folder that a path or a name means: itself, the result of a run, or a snapshot of the Hub.

    Args:
        path: A model folder of caldera or llava-hf, the folder of a finished run, or a text ORG/NAME[@REVISION], which
            is downloaded from the Hugging Face Hub if it is not in its cache.

    Raises:
        ModelFormatError: It is none of these; the message states what it is and what to do.
        HubError: The repository or a file of it cannot be used.
        OutputError: The disk has too little space for it.
    """

    def check(folder: Path) -> None:
        try:
            _require_usable(identify(folder))
        except ModelFormatError as error:
            # The commit is no name of the snapshot yet.
            raise ModelFormatError(str(error).replace(shown_name(folder), str(path))) from None

    model_path = identify(local_folder(path, check))
    if model_path.advice:
        raise ModelFormatError(model_path.advice)
    return model_path.path


def _require_usable(model_path: ModelPath) -> None:
    """Raise ModelFormatError if a path is no model, or its chat template must be named; no weights are needed."""
    if model_path.advice:
        raise ModelFormatError(model_path.advice)
    if model_path.kind == "llava-hf" and released_template(model_path.path) is None:
        require_known_template(model_path.path, load_tokenizer(model_path.path))


def identify(path: str | Path) -> ModelPath:
    """Return what a path is, by its content and never by its name.

    Raises:
        ModelFormatError: A config.json is broken, or would run code.
    """
    text, path = str(path), Path(path)
    try:
        path = path.expanduser()
        if path.is_dir():
            return _identify_folder(path)
        return _identify_file(path) if path.exists() else _identify_name(text, path)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelFormatError(f"cannot read {shorten_value(text)}: {reason}") from None


def _identify_folder(folder: Path) -> ModelPath:
    if (folder / METADATA_FILE).is_file():
        return ModelPath("caldera", folder)
    for name in _RUN_MODELS:
        if (folder / name / METADATA_FILE).is_file():
            return ModelPath("caldera", folder / name)
    for identify_part in (_identify_adapter, _identify_config, _identify_run_part):
        if model_path := identify_part(folder):
            return model_path
    return _identify_other(folder)


def _identify_adapter(folder: Path) -> ModelPath | None:
    """Recognize LoRA adapters but those of LLaVA's own code, which have its config."""
    if (folder / CALDERA_ADAPTER).is_file():
        merged = folder.parent / "model"
        use = f"its run has merged it already: use {merged}, or merge it into another copy of its base"
        if not (merged / METADATA_FILE).is_file():
            use = "merge the two"
        return ModelPath(
            "caldera adapter",
            folder,
            f"{folder} is an adapter, which needs its base model; {use}: caldera train merge {_quoted(folder)} --model "
            "BASE --out FOLDER",
        )
    names = (ADAPTER_CONFIG, *ADAPTER_FILES)
    has_adapter = any((folder / name).is_file() for name in names)
    if not has_adapter or has_weights(folder):
        return None
    if is_original(read_json(folder / "config.json", required=False)):
        return None
    base = read_json(folder / ADAPTER_CONFIG, required=False).get("base_model_name_or_path")
    return ModelPath(
        "peft adapter",
        folder,
        f"{shown_name(folder)} is a LoRA adapter of peft for {base or 'a base model that it does not name'}, not of "
        "LLaVA's own code; merge it with peft (PeftModel.from_pretrained(BASE, FOLDER).merge_and_unload()), save the "
        "result with save_pretrained, and give that folder",
    )


def _identify_config(folder: Path) -> ModelPath | None:
    """Recognize folders with a `config.json`."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    model_type, name = config.get("model_type"), shown_name(folder)
    if is_original(config):
        advice = "" if released_template(folder) else _original_advice(folder, config)
        return ModelPath("original", folder, advice)
    if model_type in LLAVA_HF_TYPES:
        return ModelPath("llava-hf", folder)
    towers = {part for part in ("vision_config", "text_config") if part in config}
    is_vision = (
        str(model_type).startswith(("clip", "siglip"))
        if towers
        else not _VISION_SETTINGS.isdisjoint(config)
    )
    if is_vision:
        option, other = "--vision", "--language LANGUAGE_MODEL"
        subject = "a vision tower without a language model"
    elif "vocab_size" in config and not towers:
        option, other = "--language", "--vision VISION_TOWER"
        subject = "a language model without a vision tower"
    else:
        return ModelPath(
            "other model",
            folder,
            f"{name} is a model of type {model_type!r}; caldera reads {', '.join(LLAVA_HF_TYPES)} of transformers, "
            "and LLaVA's own layout",
        )
    options = f"{option} {shlex.quote(name)} {other}"
    return ModelPath(
        "vision tower" if is_vision else "language model",
        folder,
        f"{name} is {subject} (model_type {model_type!r}); train the two together: caldera train pretrain {options} "
        f"--data FILE --out RUN, or join them untrained: caldera import {options} --out FOLDER",
    )


def _original_advice(folder: Path, config: dict[str, Any]) -> str:
    """Return the command that converts a folder of LLaVA's own code."""
    is_adapter = any((folder / name).is_file() for name in (NON_LORA_FILE, *ADAPTER_FILES))
    is_projector = not has_weights(folder) and (folder / PROJECTOR_FILE).is_file()
    base = " --base LANGUAGE_MODEL" if is_adapter or is_projector else ""
    template = "plain" if is_projector else "vicuna_v1"
    tower = config.get("mm_vision_tower") or "its vision tower"
    name, is_on_hub = shown_name(folder), hub_source(folder) is not None
    vision = "" if is_on_hub else " --vision TOWER"
    hint = "" if is_on_hub else f"TOWER: {tower} or a folder of it; "
    return (
        f"{name} is in the layout of LLaVA's own code; convert it: caldera import {shlex.quote(name)}"
        f"{base}{vision} --template {template} --out FOLDER ({hint}the template is right for LLaVA-1.5, "
        "docs/templates.md has the others)"
    )


def _identify_run_part(folder: Path) -> ModelPath | None:
    """Recognize checkpoints and runs that have no result yet."""
    if all((folder / name).is_file() for name in _STEP_FILES):
        return ModelPath("checkpoint", folder, _checkpoint_advice(folder, folder.parent.parent))
    if folder.name == "checkpoints" and any((folder.parent / name).exists() for name in _RUN_FILES):
        return ModelPath("checkpoint", folder, _checkpoint_advice(folder, folder.parent))
    if not any((folder / name).exists() for name in _RUN_FILES):
        return None
    stage_1_model = folder / "pretrain" / "model"
    stage_1 = f"; its stage 1 is finished: {stage_1_model}" if stage_1_model.is_dir() else ""
    return ModelPath(
        "unfinished run",
        folder,
        f"{folder} is a run that is not finished, so it has no model yet; repeat its command to resume it (caldera "
        f"train: with --resume){stage_1}",
    )


def _checkpoint_advice(folder: Path, run: Path) -> str:
    model = run / "model"
    use = (
        f"use the run's model, {model}" if model.is_dir() else f"resume the run {run} to finish it"
    )
    return f"{folder} is a checkpoint, from which only its run can be resumed; {use}"


def _identify_other(folder: Path) -> ModelPath:
    """Describe a folder that is no model, with the models below it."""
    if gguf := next(folder.glob("*.gguf"), None):
        return _identify_file(gguf)
    if not any(folder.iterdir()):
        return ModelPath("empty folder", folder, f"{folder} is empty; check the path")
    files = (f"*/{METADATA_FILE}", f"*/model/{METADATA_FILE}", "snapshots/*/config.json")
    below = sorted(str(file.parent) for pattern in files for file in folder.glob(pattern))
    if below:
        more = ", ..." if len(below) > _MAX_LISTED else ""
        hint = f"is not a model folder itself; give one below it: {', '.join(below[:_MAX_LISTED])}{more}"
    else:
        hint = f"has no {METADATA_FILE} and no config.json, so it is not a model folder; check the path"
    return ModelPath("other folder", folder, f"{folder} {hint}")


def _identify_file(file: Path) -> ModelPath:
    is_gguf = file.suffix.lower() == ".gguf"
    if file.is_file():
        with file.open("rb") as stream:
            is_gguf = stream.read(4) == b"GGUF" or is_gguf
    if is_gguf:
        return ModelPath(
            "gguf",
            file,
            f"{file} is a GGUF file, which llama.cpp runs; caldera takes one only as the language model of a training: "
            f"caldera train pretrain --language {_quoted(file)}; give the model folder from which it was exported",
        )
    content = "a file of weights" if file.suffix in _WEIGHT_SUFFIXES else "a file"
    if file.suffix in TORCH_SUFFIXES:
        content = (
            "a pickle of torch, which is not opened here (caldera import converts a folder with it)"
        )
    is_model = (file.parent / "config.json").is_file()
    use = f"give its folder, {file.parent}" if is_model else "give a model folder"
    return ModelPath("file", file, f"{file} is {content}; {use}")


def _identify_name(text: str, path: Path) -> ModelPath:
    """Describe a path that does not exist."""
    text = _WEB_ADDRESS.sub(r"\1://", text, count=1)
    if "://" in text:
        return ModelPath("missing", path, f"{text} is a web address; give a model folder")
    hint = "; check the path, or give ORG/NAME for a model on the Hugging Face Hub"
    if on_hub := [name for name in RELEASED_TEMPLATES if name.endswith(f"/{text}")]:
        hint = f"; did you mean {' or '.join(on_hub)} on the Hugging Face Hub?"
    elif path.parent != Path() or path.suffix in _WEIGHT_SUFFIXES:
        hint = "; check the path"
    if _HUB_NAME.fullmatch(text):
        hint = f"; check the path, or give hf://{text} for a model on the Hugging Face Hub"
    return ModelPath("missing", path, f"{text} does not exist{_nearest(path) or hint}")


def _nearest(path: Path) -> str:
    """Return a question about a path with a similar name next to a missing one; empty if there is none."""
    folder = next(parent for parent in path.parents if parent.is_dir() or parent == parent.parent)
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    nearest = nearest_name(path.relative_to(folder).parts[0], names)
    return f"; did you mean {folder / nearest}?" if nearest else ""


def _quoted(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))
