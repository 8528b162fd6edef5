"""Request to import a model, and detection of its layout by content alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.formats.config import read_config
from caldera.formats.hub_models import shown_name, source_name
from caldera.formats.model_paths import ADAPTER_FILES, NON_LORA_FILE, PROJECTOR_FILE, identify
from caldera.formats.original.config import is_original
from caldera.formats.weight_files import has_weights, read_folder
from caldera.formats.weight_merging import ADAPTER_CONFIG, VOCAB_MULTIPLE
from caldera.images.anyres import ImageAspect
from caldera.templates.registry import find_template

SourceLayout = Literal["hf", "full", "projector", "lora", "delta"]
"""Layout of a folder: llava-hf's; of LLaVA's own code: a complete model, stage 1's projector, a LoRA adapter, or delta
weights."""

_MAX_MULTIPLE = 2**16
"""Largest multiple of rows; beyond it, a table would be mostly rows without a token."""

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRequest:
    """Model to import, and settings that its files do not give."""

    source: Path | None = None
    """Folder of a model; None to join `vision` and `language`."""

    layout: SourceLayout | None = None
    """Layout of the folder, where its files allow several."""

    base: Path | None = None
    """Language model that a projector, an adapter or a delta needs."""

    vision: Path | None = None
    """Folder of the vision tower."""

    language: Path | None = None
    """Folder of the language model to join with `vision`."""

    projector: str = "mlp2x_gelu"
    """Projector of joined towers: a name in PROJECTORS, or a file of weights."""

    template: str | None = None
    """Name of the chat template; most folders do not give it."""

    aspect: ImageAspect | None = None
    """How images that are not square are prepared; None follows the source."""

    dtype: str = "auto"
    """Dtype of the weights on disk; `auto` follows the source."""

    vocab_multiple: int | None = None
    """Multiple that the rows of embedding tables are filled up to where they grow; VOCAB_MULTIPLE if None."""

    seed: int = 0
    """Seed of a fresh projector."""

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.template is not None:
            find_template(self.template)
        if self.layout is not None and self.layout not in get_args(SourceLayout):
            raise UnknownNameError("layout", self.layout, get_args(SourceLayout))
        if self.aspect is not None and self.aspect not in get_args(ImageAspect):
            raise UnknownNameError("aspect", self.aspect, get_args(ImageAspect))
        if self.dtype != "auto" and self.dtype not in DTYPES:
            raise UnknownNameError("dtype", self.dtype, ["auto", *DTYPES])
        if self.vocab_multiple is not None and not 1 <= self.vocab_multiple <= _MAX_MULTIPLE:
            raise UsageError(
                f"--vocab-multiple is {self.vocab_multiple}; it must be from 1 to {_MAX_MULTIPLE:,}"
            )
        if self.source is None and not (self.vision and self.language):
            raise UsageError(
                "give the folder of a model, or --vision and --language to join two towers"
            )
        if self.source is not None and self.language is not None:
            raise UsageError(
                "--language joins two towers, without a source; the base of an original folder is --base"
            )

    @property
    def require_template(self) -> str:
        """Name of the template.

        Raises:
            UsageError: None was given; the message has the one that the config suggests, and where all are listed.
        """
        if self.template is None:
            assert self.source
            likely = _likely_template(read_config(self.source))
            raise UsageError(
                f"{shown_name(self.source)} does not name its chat template; by its config it was trained with "
                f"{likely}, if the model is one of LLaVA's releases: give --template {likely} (LLaVA v1: "
                "llava_v1_original, its 34B: chatml_direct_original), else another of docs/templates.md"
            )
        return self.template

    @property
    def sources(self) -> dict[str, str]:
        """Origins of the folders by role: their names on the Hub with the commit, else their own names."""
        folders = {
            "source": self.source,
            "base": self.base,
            "vision": self.vision,
            "language": self.language,
        }
        return {role: source_name(folder) for role, folder in folders.items() if folder}

    @property
    def grown_multiple(self) -> int:
        """Multiple that the rows of grown embedding tables are filled up to."""
        return self.vocab_multiple or VOCAB_MULTIPLE

    def reject_options(self, *options: str) -> None:
        """Raise UsageError if one of the options, which the layout does not use, was given."""
        values = {
            "base": self.base,
            "vision": self.vision,
            "vocab-multiple": self.vocab_multiple,
        }
        if used := [f"--{name}" for name in options if values[name] is not None]:
            raise UsageError(
                f"{self.source or 'a joined model'} is a complete model; remove {' and '.join(used)} "
                "(for delta weights add --delta)"
            )


def _likely_template(config: dict[str, Any]) -> str:
    """Return the template that LLaVA's code used for a model of its own, by stage, language model and version."""
    if config.get("tune_mm_mlp_adapter"):
        return "plain_original"
    of_language = {"llava_mistral": "mistral_instruct_original", "llava_qwen": "qwen_original"}
    if (model_type := str(config.get("model_type"))) in of_language:
        return of_language[model_type]
    version = str(config.get("transformers_version"))
    return "vicuna_v1_original_4_31" if version.startswith("4.31.") else "vicuna_v1_original"


def detect_layout(folder: Path, requested: SourceLayout | None = None) -> SourceLayout:
    """Detect the layout of a folder by its config and files, never by its name.

    Args:
        folder: A model folder of another project.
        requested: The layout that the user names.

    Raises:
        ModelFormatError: The folder cannot be imported.
        UsageError: It could have several layouts, or does not have the requested one.
    """
    model_path = identify(folder)
    if model_path.kind == "caldera":
        raise UsageError(f"{model_path.path} is a caldera model folder already; use it as it is")
    if model_path.kind not in ("original", "llava-hf"):
        raise ModelFormatError(model_path.advice)
    config, file = read_config(folder), folder / "config.json"
    if is_original(config) and "text_config" in config:
        raise ModelFormatError(
            f"{file} has settings of llava-hf's layout (text_config) and of the original's (mm_vision_tower); remove "
            "those that do not belong there"
        )
    if is_original(config):
        return _detect_original_layout(folder, requested)
    return _confirm(folder, "hf", requested, {"hf"})


def _detect_original_layout(folder: Path, requested: SourceLayout | None) -> SourceLayout:
    """Detect the layout of a folder of LLaVA's own code."""
    adapter = any(
        (folder / name).exists() for name in (ADAPTER_CONFIG, *ADAPTER_FILES, NON_LORA_FILE)
    )
    projector = (folder / PROJECTOR_FILE).exists()
    complete = has_weights(folder)
    possible: set[SourceLayout] = set()
    if complete:
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
    # LLaVA's releases keep stage 1's projector file next to complete weights with their own projector.
    if complete and projector and not adapter and requested is None and _holds_projector(folder):
        return "full"
    likely = sorted(possible - {"delta"})
    if len(likely) > 1 and requested is None:
        raise UsageError(
            f"{folder} could have several layouts: {', '.join(likely)}; choose one with --layout"
        )
    return _confirm(folder, likely[0], requested, possible)


def _holds_projector(folder: Path) -> bool:
    """Return whether complete weights hold a projector."""
    return any("mm_projector." in name for name in read_folder(folder).weights)


def _confirm(
    folder: Path,
    detected: SourceLayout,
    requested: SourceLayout | None,
    possible: set[SourceLayout],
) -> SourceLayout:
    """Return the requested layout if the folder can have it, else the detected one."""
    if requested is not None and requested not in possible:
        raise UsageError(
            f"{folder} is not {requested!r}: its files are of {', '.join(sorted(possible))}"
        )
    return requested or detected
