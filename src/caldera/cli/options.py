"""Options that several commands share, output to stdout and stderr, and hints for renamed options."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from caldera.errors import UnknownNameError, UsageError
from caldera.overrides import SYNONYMS

if TYPE_CHECKING:
    from caldera.conversation.reader import ReadOptions
    from caldera.devices import Runtime
    from caldera.inference.packed_linear import Quantization

# Rich markup is off, so a name from data that contains "[/b]" or ":x:" is printed as it is.
stdout_console = Console(markup=False, emoji=False)
"""Console for results."""

stderr_console = Console(stderr=True, markup=False, emoji=False)
"""Console for everything else."""


_SILENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables that keep libraries from printing between the lines of a command."""

_silenced: dict[str, str] = {}
"""Those of them that this process has set."""


def silence_libraries() -> None:
    """Set environment variables that silence libraries, unless the user has set them."""
    _silenced.update({name: value for name, value in _SILENT.items() if name not in os.environ})
    os.environ.update(_silenced)


def user_environment() -> dict[str, str]:
    """Return the environment variables without those that `silence_libraries` has set."""
    return {name: value for name, value in os.environ.items() if name not in _silenced}


def check_out_file(path: Path | None) -> Path | None:
    """Return the path of a file to write; a folder is an error before any work is done."""
    if path is not None and path.is_dir():
        raise UsageError(f"--out {path} is a folder; give the path of a file")
    return path


ModelName = Annotated[
    str,
    typer.Argument(
        help="Model folder of caldera or llava-hf, the folder of a run, or a name on the Hugging Face Hub."
    ),
]
"""A text and not a Path, which would make the path `./org/name` a name on the Hub."""


def _forbid_network(offline: bool) -> None:
    """Let `huggingface_hub`, which reads the variable when it is imported, use its cache only."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        callback=_forbid_network,
        help="Use names of the Hugging Face Hub from its cache only; or set HF_HUB_OFFLINE.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting, such as learning_rate, batch_size, epochs or max_steps. Repeatable.",
    ),
]
MaxBadFraction = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Skip (and list) at most this fraction of invalid items; 0 skips none.",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder that image paths are relative to. \\[default: the data file's]"),
]
ImagesFrom = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OLD=NEW",
        help="Folder of images in the records, and where it is here. Repeatable.",
    ),
]
Captions = Annotated[
    Path | None, typer.Option(help="COCO file of the captions, in place of the one found.")
]
Instances = Annotated[
    Path | None, typer.Option(help="COCO file of the boxes, in place of the one found.")
]
Boxes = Annotated[
    str | None,
    typer.Option(
        help="Unit and frame of boxes where files do not state them: pixels, fractions, percent; stored or displayed."
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGE,CAPTION",
        help="Columns or fields of a caption table, such as file_name,text.",
    ),
]
AllowTruncated = Annotated[
    bool,
    typer.Option(
        "--allow-truncated",
        help="Use images that lack the end of their file, as far as they go, and list them.",
    ),
]
ImageLimit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Change a limit on images: max_pixels, max_side or max_bytes. Repeatable.",
    ),
]
IgnoreField = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Extra field of records to ignore. Repeatable."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ..., mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
StoredDtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16, or auto: float32 if stored so, else the fastest of the device."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images whose features are not cached. \\[default: cores - 1, at most 8]",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="int8",
        help="Quantize the language model to 8 bits, on a CPU: faster, in half the memory of bfloat16.",
    ),
]

RENAMED_OPTIONS = {
    "--max-tokens": "--max-new-tokens",
    "--output": "--out",
    "--output-dir": "--out",
    "--data-path": "--data",
    "--image-folder": "--images",
    "--image-file": "--image",
    "--pictures": "--images",
    "--pretrain-pictures": "--pretrain-images",
    "--max-bad": "--max-bad-fraction",
    "--recorded": "--replay-from",
    "--unpriced": "--no-price",
    "--allow-mixed": "--allow-changed-run",
    "--key-variable": "--api-key-env",
    "--open": "--decode-images",
    "--no-open": "--no-decode-images",
    "--per-picture": "--per-image",
    "--form": "--prompt-layout",
    "--sentences": "--answer-prompt",
    "--find": "--check-images",
    "--no-find": "--no-check-images",
    "--least": "--min-count",
    "--most": "--max-per-phrase",
    "--parquet": "--out",
    "--select-layer": "--vision-feature-layer",
    "--select": "--feature-select",
    "--aligned": "--stage1-model",
    "--served": "--served-model",
    "--truth": "--annotations",
    "--mend": "--fix-class-token",
    "--as": "--layout",
    "--host-name": "--allowed-host",
    "--fetch-from": "--allowed-media-domains",
    "--media-root": "--allowed-local-media-path",
    "--beside": "--compare-with",
    "--key-file": "--api-key-file",
    "--insecure": "--no-auth",
}
"""Spelling of each renamed option, and of other tools' names, on every command that has the option."""

RENAMED_COMMANDS = {
    ("data", "export"): "to-parquet",
    ("evaluate", "own"): "custom",
    ("evaluate", "seed"): "seed-bench",
    ("evaluate", "tasks"): "benchmarks",
}
"""Current name of each renamed command, by group and former name."""


def raise_if_renamed_option(error: Exception) -> None:
    """Raise a UsageError that names the option or setting if the error is about another name of it."""
    # Typer does not export click's NoSuchOption, so the error is recognized by its fields.
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if option is None or context is None:
        return
    options = {
        name
        for parameter in context.command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    current, setting = RENAMED_OPTIONS.get(option), option.removeprefix("--").replace("-", "_")
    if current in options:
        raise UsageError(f"no such option: {option}; did you mean {current}?") from None
    setting = SYNONYMS.get(setting, setting)
    if "--set" in options and setting in SYNONYMS.values():
        raise UsageError(
            f"no such option: {option}; it is a setting: --set {setting}=VALUE"
        ) from None


def raise_if_renamed_command(group: str | None, name: str) -> None:
    """Raise a UsageError that gives the current name of a renamed command of a group."""
    if current := RENAMED_COMMANDS.get((group or "", name)):
        raise UsageError(f"no such command: {group} {name}; did you mean {group} {current}?")


def read_options_from(
    images: Path | None,
    images_from: list[str] | None,
    ignore_field: list[str] | None,
    image_limit: list[str] | None = None,
    allow_truncated: bool = False,
) -> "ReadOptions":
    """Return how data files and their images are read."""
    from caldera.conversation.image_values import parse_images_from
    from caldera.conversation.reader import ReadOptions
    from caldera.images.decoding import DecodingConfig
    from caldera.overrides import apply_overrides

    decoding = DecodingConfig(allow_truncated=allow_truncated)
    return ReadOptions(
        decoding=apply_overrides(decoding, image_limit or ()),
        images=images,
        images_from=parse_images_from(images_from or ()),
        ignore_fields=frozenset(ignore_field or ()),
    )


def print_result(*lines: str) -> None:
    """Print lines to stdout, unchanged."""
    for line in lines:
        stdout_console.print(line, highlight=False, soft_wrap=True)


def print_message(*lines: str) -> None:
    """Print lines to stderr, unchanged."""
    for line in lines:
        stderr_console.print(line, highlight=False, soft_wrap=True)


def quantization_from(quantize: str | None) -> "Quantization":
    """Return the quantization of the engine's weights."""
    if quantize is None:
        return "as stored"
    if quantize != "int8":
        raise UnknownNameError("quantization", quantize, ("int8",))
    return "int8"


def runtime_from(device: str, dtype: str, workers: int | None = None) -> "Runtime":
    """Return the runtime of a job: device, precision, progress display and number of decoding processes.

    Raises:
        UsageError: There is no such device or precision.
    """
    from typing import get_args

    from caldera.devices import DtypeName, Runtime, choose_device
    from caldera.progress import default_progress

    if dtype not in get_args(DtypeName):
        raise UnknownNameError("dtype", dtype, get_args(DtypeName))
    config = choose_device(device, dtype)  # type: ignore[arg-type] # checked above
    if workers is None:
        return Runtime(config, default_progress())
    return Runtime(config, default_progress(), workers)
