"""A model folder in, the same model for another program out, and a comparison that says whether it is the same."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera.errors import UnknownNameError, UsageError
from caldera.export.parity.caldera_side import Caldera
from caldera.export.parity.compare import (
    OtherSide,
    Parity,
    ParityCase,
    check_readable,
    compare,
)
from caldera.export.parity.llama_cpp_side import LlamaCpp, require_llama_cpp
from caldera.export.parity.sample_images import drawn_images, given_images
from caldera.export.parity.transformers_side import Transformers
from caldera.formats.gguf.export import chat_template_of, gguf_files, write_gguf_files
from caldera.formats.gguf.vision_tower import ClassToken
from caldera.formats.gguf.writer import GgufDtype
from caldera.formats.model_folder import load_model_folder
from caldera.formats.original.export import write_original
from caldera.formats.weight_names import read_weights
from caldera.model.assistant import LlavaBundle
from caldera.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What is to be written, and how it is looked at afterwards."""

    folder: Path
    """The model folder."""

    out: Path
    """Where the export will stand."""

    kind: GgufDtype | None = None
    """How a GGUF file holds matrices; f16 if None."""

    class_token: ClassToken | None = None
    """Where the llama.cpp that will run a GGUF file puts the class token; last if None."""

    images: Sequence[Path] = ()
    """What is compared on; drawn scenes if there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityConfig:
    """What is compared with what."""

    folder: Path
    """The model folder."""

    against: str
    """A name of AGAINST."""

    gguf: Path | None = None
    """Folder of the GGUF files, for `gguf`."""

    mend: bool = False
    """Whether llama.cpp's class token is put first while it runs."""

    images: Sequence[Path] = ()
    """What is compared on; drawn scenes if there are none."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What came of an export."""

    parity: Parity | None
    """How it compares with the model; None where there is nothing here to run it with."""

    notes: tuple[str, ...] = ()
    """What the user should know."""


def _export_original(export: ExportConfig, progress: Progress) -> ExportReport:
    """Write the layout of LLaVA's own code; the weights are the folder's, bit for bit.

    Raises:
        UsageError: Something is asked for that this layout has not.
        CalderaError: LLaVA's own code has no class for the model, or it could not be written.
    """
    options = {
        "--type": export.kind,
        "--class-token": export.class_token,
        "--images": export.images,
    }
    if given := [name for name, value in options.items() if value]:
        raise UsageError(
            f"{' and '.join(given)} would not be used: the original layout keeps the weights as they are, and nothing "
            "here runs it to compare; leave it away"
        )
    with progress.task("writing", len(read_weights(export.folder))) as tick:
        notes = write_original(export.folder, export.out, lambda file: tick(detail=file))
    return ExportReport(None, notes)


def _export_gguf(export: ExportConfig, progress: Progress) -> ExportReport:
    """Write GGUF files and compare them.

    Raises:
        UsageError: They were written, but llama.cpp is not there to compare them with.
        CalderaError: The model cannot be expressed, or the files could not be written.
    """
    kind, class_token = export.kind or "f16", export.class_token or "last"
    files = write_gguf_files(export.folder, export.out, kind, progress, class_token)
    try:
        require_llama_cpp("comparing it")
    except UsageError as error:
        raise UsageError(
            f"{files.language} and {files.vision} are written but not compared, so nobody knows whether they are "
            f"good: {error}; then run 'caldera parity {export.folder} --against gguf --gguf {export.out}'"
        ) from None
    against = ParityConfig(
        folder=export.folder, against="gguf", gguf=export.out, images=export.images
    )
    return ExportReport(compare_model(against, progress))


EXPORT_FORMATS: dict[str, Callable[[ExportConfig, Progress], ExportReport]] = {
    "gguf": _export_gguf,
    "original": _export_original,
}
"""Formats by name: a function that writes one, and compares it where there is something to run it with."""


def export_model(name: str, export: ExportConfig, progress: Progress) -> ExportReport:
    """Write a model in the format called `name`, and compare what was written with the model.

    Raises:
        UnknownNameError: There is no such format.
        CalderaError: The format cannot express the model, or it could not be written or compared.
    """
    if name not in EXPORT_FORMATS:
        raise UnknownNameError("export format", name, EXPORT_FORMATS)
    check_images(export.images)
    return EXPORT_FORMATS[name](export, progress)


def _transformers(comparison: ParityConfig, assistant: LlavaBundle) -> OtherSide:
    return Transformers(comparison.folder)


def _llama_cpp(comparison: ParityConfig, assistant: LlavaBundle) -> OtherSide:
    """Load the GGUF files.

    Raises:
        UsageError: It is not said where they are.
    """
    if comparison.gguf is None:
        raise UsageError("say where the GGUF files are: --gguf FOLDER")
    return LlamaCpp(
        gguf_files(comparison.gguf),
        chat_template_of(assistant),
        assistant.model.image_token_id,
        fix_class_token=comparison.mend,
    )


PARITY_BACKENDS: dict[str, Callable[[ParityConfig, LlavaBundle], OtherSide]] = {
    "transformers": _transformers,
    "gguf": _llama_cpp,
}
"""Implementations that caldera is compared with, by name."""


def compare_model(comparison: ParityConfig, progress: Progress) -> Parity:
    """Compare a model folder with another implementation of it, in fp32 on the CPU.

    Raises:
        UnknownNameError: There is no such implementation.
        CalderaError: A model or an image cannot be used, or a package is missing.
    """
    if comparison.against not in PARITY_BACKENDS:
        raise UnknownNameError("implementation", comparison.against, PARITY_BACKENDS)
    if comparison.against == "gguf":
        require_llama_cpp("comparing with GGUF files")
    check_images(comparison.images)
    assistant = load_model_folder(comparison.folder)
    other = PARITY_BACKENDS[comparison.against](comparison, assistant)
    with _images(comparison.images) as shown:
        return compare(Caldera(assistant), other, shown, assistant.processor, progress)


def check_images(paths: Sequence[Path]) -> None:
    """Open a user's images before anything else is done.

    Raises:
        ImageError: One cannot be used.
    """
    if paths:
        check_readable(paths)


@contextmanager
def _images(paths: Sequence[Path]) -> Iterator[list[ParityCase]]:
    """Give the images to compare on: a user's, or drawn ones, which are removed again."""
    if paths:
        yield given_images(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield drawn_images(Path(folder))


def parity_json(parity: Parity) -> dict[str, Any]:
    """Return a comparison as JSON holds it; a difference without a size, as of two prompts, is null."""
    equal, total = parity.counted
    content = asdict(parity)
    for gap in content["gaps"]:
        gap["largest"] = None if gap["largest"] == float("inf") else gap["largest"]
    return {**content, "equal_answers": equal, "counted_answers": total, "good": parity.good}
