"""Models by their names on the Hugging Face Hub: the files to download, and the templates of known releases.

The one place where a name becomes a folder; everything else takes folders.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from caldera.files.atomic import write_json
from caldera.files.hub import Read, download, find_snapshot, hub_source, parse_hub_name
from caldera.files.hub_cache import HubFile, HubName, Listing
from caldera.files.hub_errors import HubError
from caldera.formats.config import read_json
from caldera.formats.safetensors_files import INDEX, WEIGHTS, parse_index
from caldera.formats.weight_files import TORCH_INDEX, TORCH_WEIGHTS
from caldera.progress import shown_progress

_SETTINGS = frozenset(
    (
        "caldera.json",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    )
)
"""Files other than weights; no others are downloaded, and never code."""

_TOWER_FOLDER = "vision_tower/"
"""Folder of a tower in exports of caldera to the layout of LLaVA's own code."""

_ADAPTER_CONFIG = "adapter_config.json"
_ORIGINAL_PARTS = (
    "mm_projector.bin",
    "non_lora_trainables.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""Weights of a projector or adapter of LLaVA's own code."""

_OTHER_KINDS = {
    r"model_index\.json": "a pipeline of diffusers",
    r".*\.gguf": "GGUF files, which caldera takes only as a language model: download one, and give --language FILE",
    r"adapter_config\.json": "an adapter of peft: merge it into its base with peft, and give the result",
    r".*\.(h5|msgpack|ot|onnx|tflite|nemo|ckpt|pth)": "weights for other programs",
}
"""What a repository holds that is no model for caldera, by its files."""

RELEASED_TEMPLATES = {
    "llava-hf/llava-1.5-7b-hf": "vicuna_v1",
    "llava-hf/llava-1.5-13b-hf": "vicuna_v1",
    "llava-hf/llava-v1.6-vicuna-7b-hf": "vicuna_v1",
    "llava-hf/llava-v1.6-vicuna-13b-hf": "vicuna_v1",
    "llava-hf/llava-v1.6-mistral-7b-hf": "mistral_instruct",
    "llava-hf/llava-v1.6-34b-hf": "chatml_direct",
    "liuhaotian/llava-v1.5-7b": "vicuna_v1_original_4_31",
    "liuhaotian/llava-v1.5-13b": "vicuna_v1_original_4_31",
    "liuhaotian/llava-v1.6-vicuna-7b": "vicuna_v1_original",
    "liuhaotian/llava-v1.6-vicuna-13b": "vicuna_v1_original",
    "liuhaotian/llava-v1.6-mistral-7b": "mistral_instruct_original",
    "liuhaotian/llava-v1.6-34b": "chatml_direct_original",
    "lmms-lab/llava-onevision-qwen2-0.5b-ov": "qwen_original",
    "lmms-lab/llava-onevision-qwen2-7b-ov": "qwen_original",
}
"""Templates of releases whose files do not give the one that they were trained with, by their names on the Hub."""


def released_template(folder: Path) -> str | None:
    """Return the template of a known release, if a folder is its snapshot from the Hub."""
    return RELEASED_TEMPLATES.get((hub_source(folder) or "").partition("@")[0])


Check = Callable[[Path], None]
"""Raises the error of a snapshot that cannot be used, by its settings alone."""


def local_folder(path: str | Path, check: Check | None = None) -> Path:
    """Return the folder of a Hub name's snapshot, which is downloaded if it is missing, or a path as it is.

    Args:
        path: A path, or a text ORG/NAME[@REVISION]; a `Path` is never a name.
        check: Called with the folder of a snapshot that has no weights yet, before they are downloaded.

    Raises:
        HubError: The repository or a file of it cannot be used.
        OutputError: The disk has too little space.
    """
    return local_folders(path, check=check)[0]


def local_folders(*paths: str | Path, check: Check | None = None) -> list[Path]:
    """Return folders as `local_folder` does; the sizes of all are logged before the first download."""
    names = [parse_hub_name(path) if isinstance(path, str) else None for path in paths]
    snapshots = {name: find_snapshot(name, choose_model_files) for name in names if name}
    if snapshots:
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled

        with shown_progress(silent=are_progress_bars_disabled()) as progress:
            chosen = list(snapshots.values())
            folders = [snapshot.folder for snapshot in chosen] if check else []
            download(chosen, progress, partial(_check_before_weights, check, set(folders)))
    return [
        snapshots[name].folder if name else Path(path)
        for name, path in zip(names, paths, strict=True)
    ]


def pinned_folders(*paths: str | Path, file: Path) -> list[Path]:
    """Return folders as `local_folders` does, at the commits in a run's file; those it lacks are added to it."""
    pins = read_json(file, required=False)
    folders = local_folders(*(pins.get(str(path), path) for path in paths))
    sources = {
        path: hub_source(folder)
        for path, folder in zip(paths, folders, strict=True)
        if isinstance(path, str) and parse_hub_name(path)
    }
    if sources.keys() - pins.keys():
        write_json(file, pins | sources)
    return folders


def _check_before_weights(check: Check | None, unchecked: set[Path], file: Path) -> None:
    """Check the snapshot of a file that is to be downloaded, if it is the first one with complete weights."""
    folder = next((folder for folder in unchecked if file.is_relative_to(folder)), None)
    if check and folder and file.name not in (*_SETTINGS, *_ORIGINAL_PARTS, _ADAPTER_CONFIG):
        unchecked.remove(folder)
        check(folder)


def shown_name(folder: Path) -> str:
    """Return how messages name a folder: a snapshot by its name on the Hub, any other by its path."""
    source = hub_source(folder)
    if source is None:
        return str(folder)
    repo, _, commit = source.partition("@")
    refs = folder.parent.parent / "refs"
    names = [
        ref.relative_to(refs).as_posix()
        for ref in sorted(refs.rglob("*"))
        if ref.is_file() and ref.read_text(errors="replace") == commit
    ]
    if "main" in names:
        return repo
    return f"{repo}@{names[0]}" if names else source


def source_name(folder: Path) -> str:
    """Return where a folder is from: ORG/NAME@COMMIT on the Hub, else the folder's own name."""
    return hub_source(folder) or folder.resolve().name


def choose_model_files(listing: Listing, read: Read) -> list[HubFile]:
    """Return the files of a model that caldera reads: settings first, then weights, in safetensors if there are any.

    Args:
        listing: Files of the repository.
        read: Returns the content of an index of weights.

    Raises:
        HubError: The repository holds something else, or lacks files.
    """
    name, by_path = listing.name, {file.path: file for file in listing.files}
    weights = _choose_weights(name, by_path, read)
    parts = [path for path in _ORIGINAL_PARTS if path in by_path and not weights]
    is_peft = _ADAPTER_CONFIG in by_path and "non_lora_trainables.bin" not in by_path
    if "config.json" not in by_path or not (weights or parts) or (is_peft and not weights):
        raise HubError(f"{name} is no model that caldera reads: {_describe_other(by_path)}")
    if parts and _ADAPTER_CONFIG in by_path:
        parts.insert(0, _ADAPTER_CONFIG)
    settings = [path for path in by_path if path.removeprefix(_TOWER_FOLDER) in _SETTINGS]
    tower = _choose_weights(name, by_path, read, _TOWER_FOLDER)
    return [by_path[path] for path in (*settings, *parts, *tower, *weights)]


def _choose_weights(
    name: HubName, by_path: Mapping[str, HubFile], read: Read, folder: str = ""
) -> list[str]:
    """Return the first complete weights of a folder in a repository; none if it has no weights."""
    faults = []
    for single, index in ((WEIGHTS, INDEX), (TORCH_WEIGHTS, TORCH_INDEX)):
        if listed_index := by_path.get(folder + index):
            shards = sorted({folder + shard for shard in parse_index(read(listed_index)).values()})
            missing = [path for path in shards if path not in by_path]
            if shards and not missing:
                return [listed_index.path, *shards]
            faults.append(
                f"{listed_index.path}, but not all of its files: {missing[0]} is missing"
                if shards
                else f"{listed_index.path}, which is no index of weights"
            )
        if folder + single in by_path:
            return [folder + single]
    if faults:
        raise HubError(f"{name} has {faults[0]}; choose another revision or copy")
    return []


def _describe_other(by_path: Mapping[str, HubFile]) -> str:
    """Describe what a repository holds in place of a model."""
    for pattern, kind in _OTHER_KINDS.items():
        if any(re.fullmatch(pattern, path) for path in by_path):
            return f"it has {kind}"
    missing = "config.json" if "config.json" not in by_path else f"{WEIGHTS} or {TORCH_WEIGHTS}"
    return f"it has no {missing}"
