"""Export of a model folder for another program, and the comparison of the result with the model."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caldera.errors import UnknownNameError, UsageError
from caldera.export.parity.caldera_side import Caldera
from caldera.export.parity.compare import OtherSide, Parity, ParityCase, check_readable, compare
from caldera.export.parity.llama_cpp_side import CLASS_TOKEN_LAST, LlamaCpp
from caldera.export.parity.original_side import open_original
from caldera.export.parity.sample_images import build_cases, draw_cases
from caldera.export.parity.transformers_side import Transformers
from caldera.extras import require_extra
from caldera.formats.gguf.export import chat_template_of, gguf_files, write_gguf_files
from caldera.formats.gguf.vision_tower import ClassToken
from caldera.formats.gguf.writer import GgufDtype
from caldera.formats.model_paths import find_model
from caldera.formats.open_model import load_model
from caldera.formats.original.export import write_original
from caldera.formats.weight_names import read_weights
from caldera.model.bundle import LlavaBundle
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Settings of an export and of the comparison after it."""

    folder: str | Path
    """The model, as `find_model` takes it."""

    out: Path
    dtype: GgufDtype | None = None
    """Type of the matrices in a GGUF file; f16 if None."""

    class_token: ClassToken | None = None
    """Position of the class token in the llama.cpp that will run a GGUF file; last if None."""

    images: Sequence[Path] = ()
    """Images to compare on; drawn scenes if empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityConfig:
    """Settings of a comparison."""

    folder: str | Path
    """The model, as `find_model` takes it."""

    against: str
    """A name in PARITY_BACKENDS."""

    gguf: Path | None = None
    """Folder of the GGUF files, for `gguf`."""

    original: Path | None = None
    """Folder in LLaVA's own layout, for `original`."""

    python: Path | None = None
    """Python that has LLaVA's package, to run its own code on that folder; without it the folder is imported again."""

    fix_class_token: bool = False
    """Whether to move llama.cpp's class token to the front while it runs."""

    images: Sequence[Path] = ()
    """Images to compare on; drawn scenes if empty."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export."""

    parity: Parity | None
    """Comparison with the model; None if nothing here can run the export."""

    notes: tuple[str, ...] = ()
    known_fault: str = ""
    """Fault of the other implementation that explains the differences, as the files are right; empty if none."""


def _export_original(config: ExportConfig, folder: Path, progress: Progress) -> ExportReport:
    """Write the layout of LLaVA's own code; the weights are the folder's, bit for bit."""
    options = {
        "--type": config.dtype,
        "--class-token": config.class_token,
        "--images": config.images,
    }
    if unused := [name for name, value in options.items() if value]:
        raise UsageError(
            f"{' and '.join(unused)} would not be used: the original layout keeps the weights as they are; remove it"
        )
    with progress.task("writing", len(read_weights(folder))) as tick:
        notes = write_original(folder, config.out, lambda file: tick(detail=file))
    compare = f"compare it: caldera parity {folder} --against original --original {config.out}"
    return ExportReport(None, (*notes, compare))


def _export_gguf(config: ExportConfig, folder: Path, progress: Progress) -> ExportReport:
    """Write GGUF files and compare them."""
    dtype, class_token = config.dtype or "f16", config.class_token or "last"
    files = write_gguf_files(folder, config.out, dtype, progress, class_token)
    try:
        require_extra("reference", "comparing it")
    except UsageError as error:
        note = (
            f"{files.language} and {files.vision} were not compared with the model: {error}; then run 'caldera parity "
            f"{folder} --against gguf --gguf {config.out}'"
        )
        return ExportReport(None, (note,))
    parity_config = ParityConfig(
        folder=folder, against="gguf", gguf=config.out, images=config.images
    )
    parity = compare_model(parity_config, progress)
    return ExportReport(parity, known_fault=_class_token_fault(parity))


def _class_token_fault(parity: Parity) -> str:
    """Describe the fault of a llama.cpp that loses a patch after the tower; empty if it is not the only difference."""
    different = {stage.stage for stage in parity.stages if not stage.good}
    if (
        not different <= {"image tokens", "logits"}
        or parity.good
        or parity.notes != (CLASS_TOKEN_LAST,)
    ):
        return ""
    equal, total = parity.num_equal
    return (
        f"llama-cpp-python {version('llama-cpp-python')} drops the first patch of every image (llama.cpp's issue "
        f"25814): the features of all patches agree, {equal} of {total} answers are equal; for a llama.cpp without "
        "that fault, export with --class-token first"
    )


EXPORT_FORMATS: dict[str, Callable[[ExportConfig, Path, Progress], ExportReport]] = {
    "gguf": _export_gguf,
    "original": _export_original,
}
"""Formats by name: a function that writes one, and compares it if something here can run it."""


def export_model(name: str, config: ExportConfig, progress: Progress) -> ExportReport:
    """Write a model in the format `name`, and compare the result with the model.

    Raises:
        UnknownNameError: There is no such format.
        UsageError: An option does not apply to the format.
        CalderaError: The format cannot express the model, or it could not be written or compared.
    """
    if name not in EXPORT_FORMATS:
        raise UnknownNameError("export format", name, EXPORT_FORMATS)
    if config.images:
        check_readable(config.images)
    return EXPORT_FORMATS[name](config, find_model(config.folder), progress)


def _load_llama_cpp(
    config: ParityConfig, folder: Path, assistant: LlavaBundle
) -> AbstractContextManager[OtherSide]:
    if config.gguf is None:
        raise UsageError("the folder of the GGUF files is missing; pass --gguf FOLDER")
    return closing(
        LlamaCpp(
            gguf_files(config.gguf),
            chat_template_of(assistant),
            assistant.model.image_token_id,
            fix_class_token=config.fix_class_token,
        )
    )


def _open_original(
    config: ParityConfig, folder: Path, assistant: LlavaBundle
) -> AbstractContextManager[OtherSide]:
    if config.original is None:
        raise UsageError(
            "the folder in LLaVA's own layout is missing; pass --original FOLDER, which caldera export --to original "
            "writes"
        )
    return open_original(config.original, assistant, config.python)


PARITY_BACKENDS: dict[
    str, Callable[[ParityConfig, Path, LlavaBundle], AbstractContextManager[OtherSide]]
] = {
    "transformers": lambda _, folder, assistant: nullcontext(
        Transformers(folder, assistant.card.template)
    ),
    "gguf": _load_llama_cpp,
    "original": _open_original,
}
"""Implementations to compare with, by name."""


def compare_model(config: ParityConfig, progress: Progress) -> Parity:
    """Compare a model folder with another implementation of it, in fp32 on the CPU.

    Raises:
        UnknownNameError: There is no such implementation.
        CalderaError: A model or an image cannot be used, or a package is missing.
    """
    if config.against not in PARITY_BACKENDS:
        raise UnknownNameError("implementation", config.against, PARITY_BACKENDS)
    options = {
        "--gguf": (config.gguf, "gguf"),
        "--fix-class-token": (config.fix_class_token, "gguf"),
        "--original": (config.original, "original"),
        "--python": (config.python, "original"),
    }
    for option, (value, backend) in options.items():
        if value and backend != config.against:
            raise UsageError(
                f"{option} is not used with --against {config.against}; remove it, or compare --against {backend}"
            )
    if config.against == "gguf":
        require_extra("reference", "comparing with GGUF files")
    if config.images:
        check_readable(config.images)
    folder = find_model(config.folder)
    assistant = load_model(folder)
    with (
        PARITY_BACKENDS[config.against](config, folder, assistant) as other,
        _parity_cases(config.images) as cases,
    ):
        return compare(Caldera(assistant), other, cases, assistant.processor, progress)


@contextmanager
def _parity_cases(images: Sequence[Path]) -> Iterator[list[ParityCase]]:
    """Yield cases about a user's images, or about drawn ones in a temporary folder."""
    if images:
        yield build_cases(images)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield draw_cases(Path(folder))


def parity_json(parity: Parity) -> dict[str, Any]:
    """Return a comparison as JSON; an infinite difference, as of two prompts, is null."""
    equal, total = parity.num_equal
    content = asdict(parity)
    for stage in content["stages"]:
        if stage["max_difference"] == float("inf"):
            stage["max_difference"] = None
    return {**content, "equal_answers": equal, "counted_answers": total, "good": parity.good}
