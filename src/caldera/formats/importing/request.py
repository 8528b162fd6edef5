"""What a user wants to import in, checked; and what a folder of somebody's model is, by its content alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats.config import read_config
from caldera.formats.metadata import METADATA_FILE
from caldera.formats.original.config import is_original
from caldera.formats.weight_files import has_weights, read_folder
from caldera.formats.weight_merging import ADAPTER_CONFIG
from caldera.images.processor import ImageAspect
from caldera.templates.template import TEMPLATES, find_template

SourceLayout = Literal["hf", "full", "projector", "lora", "delta"]
"""What a folder is: llava-hf's; of LLaVA's own code: whole, stage 1's, an adapter, or what changed in its base."""

PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
CALDERA_ADAPTER = "caldera_adapter.json"

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRequest:
    """What is to come in, and what its files do not say."""

    source: Path | None = None
    """A model's folder; None to join `vision` and `language`."""

    kind: SourceLayout | None = None
    """What the folder is, where its files allow several."""

    base: Path | None = None
    """The language model that a projector, an adapter or a delta stands on."""

    vision: Path | None = None
    """The vision tower."""

    language: Path | None = None
    """The language model, to be joined with `vision`."""

    projector: str = "mlp2x_gelu"
    """To join: a name in PROJECTORS, or a file of a projector's weights."""

    template: str | None = None
    """How conversations are written; most folders do not say."""

    aspect: ImageAspect | None = None
    """How images that are not square are shown; None as the source says."""

    dtype: str = "auto"
    """Of the weights on disk; `auto` as they are."""

    seed: int = 0
    """Of a fresh projector."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UsageError: They contradict each other, or there is no such name.
        """
        if self.template is not None:
            find_template(self.template)
        if self.kind is not None and self.kind not in get_args(SourceLayout):
            raise UnknownNameError("kind of folder", self.kind, get_args(SourceLayout))
        if self.aspect is not None and self.aspect not in get_args(ImageAspect):
            raise UnknownNameError("image_aspect", self.aspect, get_args(ImageAspect))
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, ["auto", *DTYPES])
        if self.source is None and not (self.vision and self.language):
            raise UsageError(
                "give the folder of a model, or --vision and --language to join two towers"
            )
        if self.source is not None and self.language is not None:
            raise UsageError(
                "--language joins two towers, without a source; an original's is --base"
            )

    @property
    def require_template(self) -> str:
        """The template that the user names.

        Raises:
            UsageError: None was named; the message lists which there are.
        """
        if self.template is None:
            raise UsageError(
                f"{self.source} does not say how conversations are written for it; give --template, one of "
                f"{', '.join(TEMPLATES)} (LLaVA-1.5 and models on Vicuna: vicuna_v1; what stage 1 left: plain)"
            )
        return self.template

    def reject_options(self, *options: str) -> None:
        """Refuse options that a kind of folder has no use for.

        Raises:
            UsageError: One was given.
        """
        given = {"base": self.base, "vision": self.vision}
        if used := [f"--{name}" for name in options if given[name] is not None]:
            raise UsageError(
                f"{self.source or 'a joined model'} holds all its weights, {' and '.join(used)} would not be used; "
                "leave it away (weights that are only what changed in a base: --delta)"
            )


def detect_layout(folder: Path, said: SourceLayout | None = None) -> SourceLayout:
    """Tell what a folder is by its config and files; its name is never looked at.

    Args:
        folder: Somebody's model.
        said: What the user says it is.

    Raises:
        ModelFolderError: It is nothing that can be imported.
        UsageError: It could be several things, or is not what the user says.
    """
    if not folder.is_dir():
        raise ModelFormatError(f"{folder} is not a folder; give a model's folder")
    if (folder / METADATA_FILE).exists():
        raise UsageError(f"{folder} is a caldera model folder already; it can be used as it is")
    if (folder / CALDERA_ADAPTER).exists():
        raise UsageError(
            f"{folder} is an adapter that caldera wrote; merge it with caldera train merge"
        )
    config, file = read_config(folder), folder / "config.json"
    kind, both = config.get("model_type"), is_original(config) and "text_config" in config
    if both:
        raise ModelFormatError(
            f"{file} has settings of llava-hf's layout (text_config) and of the original's (mm_vision_tower); remove "
            "those that do not belong there"
        )
    if is_original(config):
        return _original_kind(folder, said)
    if kind not in ("llava", "llava_next"):
        raise ModelFormatError(
            f"{file} has model_type {kind!r}; caldera imports llava and llava_next of transformers and folders of "
            "LLaVA's own code; a language model alone is joined with --language and --vision"
        )
    return _confirm(folder, "hf", said, {"hf"})


def _original_kind(folder: Path, said: SourceLayout | None) -> SourceLayout:
    """Tell which of the original's folders one is."""
    adapter = [
        name for name in (ADAPTER_CONFIG, *ADAPTER_FILES, NON_LORA_FILE) if (folder / name).exists()
    ]
    projector = (folder / PROJECTOR_FILE).exists()
    whole = has_weights(folder)
    possible: set[SourceLayout] = set()
    if whole:
        possible |= {"full", "delta"}
    if projector:
        possible.add("projector")
    if adapter:
        possible.add("lora")
    if not possible:
        raise ModelFormatError(
            f"{folder} has a config of LLaVA's own code but no weights: none of model.safetensors, pytorch_model.bin, "
            f"{PROJECTOR_FILE}, {ADAPTER_FILES[0]}"
        )
    if whole and projector and not adapter and said is None and _holds_projector(folder):
        return "full"  # as LLaVA's releases: the file is stage 1's, and the weights hold their own
    likely = sorted(possible - {"delta"})
    if len(likely) > 1 and said is None:
        raise UsageError(
            f"{folder} could be several things: {', '.join(likely)}; say which with --as"
        )
    return _confirm(folder, likely[0], said, possible)


def _holds_projector(folder: Path) -> bool:
    """Tell whether whole weights hold a projector."""
    return any("mm_projector." in name for name in read_folder(folder).weights)


def _confirm(
    folder: Path, found: SourceLayout, said: SourceLayout | None, possible: set[SourceLayout]
) -> SourceLayout:
    """Return what a user says a folder is.

    Raises:
        UsageError: Its files are of nothing like it.
    """
    if said is not None and said not in possible:
        raise UsageError(
            f"{folder} is not {said!r}: its files are of {', '.join(sorted(possible))}"
        )
    return said or found
