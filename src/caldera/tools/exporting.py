"""A model folder in, the same model for another program out, and a comparison that says whether it is the same."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.parity.by_caldera import Caldera
from caldera.evaluation.parity.by_llama_cpp import LlamaCpp, needs_llama_cpp
from caldera.evaluation.parity.by_transformers import Transformers
from caldera.evaluation.parity.comparing import Other, Parity, Shown, check_readable, compare
from caldera.model.folder import Assistant, load_assistant
from caldera.model.gguf_export import gguf_files, template_of, write_gguf_files
from caldera.model.gguf_vision import ClassToken
from caldera.model.gguf_writing import Kind
from caldera.model.original import write_original
from caldera.model.weights import read_weights
from caldera.progress import Progress
from caldera.tools.parity_pictures import drawn_pictures, given_pictures


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What is to be written, and how it is looked at afterwards."""

    folder: Path
    """The model folder."""

    out: Path
    """Where the export will stand."""

    kind: Kind | None = None
    """How a GGUF file holds matrices; f16 if None."""

    class_token: ClassToken | None = None
    """Where the llama.cpp that will run a GGUF file puts the class token; last if None."""

    pictures: Sequence[Path] = ()
    """What is compared on; drawn scenes if there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is compared with what."""

    folder: Path
    """The model folder."""

    against: str
    """A name of AGAINST."""

    gguf: Path | None = None
    """Folder of the GGUF files, for `gguf`."""

    mend: bool = False
    """Whether llama.cpp's class token is put first while it runs."""

    pictures: Sequence[Path] = ()
    """What is compared on; drawn scenes if there are none."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What came of an export."""

    parity: Parity | None
    """How it compares with the model; None where there is nothing here to run it with."""

    notes: tuple[str, ...] = ()
    """What the user should know."""


def _export_original(export: Export, progress: Progress) -> Exported:
    """Write the layout of LLaVA's own code; the weights are the folder's, bit for bit.

    Raises:
        UsageError: Something is asked for that this layout has not.
        CalderaError: LLaVA's own code has no class for the model, or it could not be written.
    """
    options = {
        "--type": export.kind,
        "--class-token": export.class_token,
        "--pictures": export.pictures,
    }
    if given := [name for name, value in options.items() if value]:
        raise UsageError(
            f"{' and '.join(given)} would not be used: the original layout keeps the weights as they are, and nothing "
            "here runs it to compare; leave it away"
        )
    with progress.job("writing", len(read_weights(export.folder))) as tick:
        notes = write_original(export.folder, export.out, lambda file: tick(shown=file))
    return Exported(None, notes)


def _export_gguf(export: Export, progress: Progress) -> Exported:
    """Write GGUF files and compare them.

    Raises:
        UsageError: They were written, but llama.cpp is not there to compare them with.
        CalderaError: The model cannot be expressed, or the files could not be written.
    """
    kind, class_token = export.kind or "f16", export.class_token or "last"
    files = write_gguf_files(export.folder, export.out, kind, progress, class_token)
    try:
        needs_llama_cpp("comparing it")
    except UsageError as error:
        raise UsageError(
            f"{files.language} and {files.vision} are written but not compared, so nobody knows whether they are "
            f"good: {error}; then run 'caldera parity {export.folder} --against gguf --gguf {export.out}'"
        ) from None
    against = Comparison(
        folder=export.folder, against="gguf", gguf=export.out, pictures=export.pictures
    )
    return Exported(run_parity(against, progress))


EXPORTS: dict[str, Callable[[Export, Progress], Exported]] = {
    "gguf": _export_gguf,
    "original": _export_original,
}
"""Formats by name: a function that writes one, and compares it where there is something to run it with."""


def run_export(name: str, export: Export, progress: Progress) -> Exported:
    """Write a model in the format called `name`, and compare what was written with the model.

    Raises:
        UnknownNameError: There is no such format.
        CalderaError: The format cannot express the model, or it could not be written or compared.
    """
    if name not in EXPORTS:
        raise UnknownNameError("export format", name, EXPORTS)
    check_given(export.pictures)
    return EXPORTS[name](export, progress)


def _transformers(comparison: Comparison, assistant: Assistant) -> Other:
    return Transformers(comparison.folder)


def _llama_cpp(comparison: Comparison, assistant: Assistant) -> Other:
    """Load the GGUF files.

    Raises:
        UsageError: It is not said where they are.
    """
    if comparison.gguf is None:
        raise UsageError("say where the GGUF files are: --gguf FOLDER")
    return LlamaCpp(
        gguf_files(comparison.gguf),
        template_of(assistant),
        assistant.model.image_token_id,
        mend=comparison.mend,
    )


AGAINST: dict[str, Callable[[Comparison, Assistant], Other]] = {
    "transformers": _transformers,
    "gguf": _llama_cpp,
}
"""Implementations that caldera is compared with, by name."""


def run_parity(comparison: Comparison, progress: Progress) -> Parity:
    """Compare a model folder with another implementation of it, in fp32 on the CPU.

    Raises:
        UnknownNameError: There is no such implementation.
        CalderaError: A model or a picture cannot be used, or a package is missing.
    """
    if comparison.against not in AGAINST:
        raise UnknownNameError("implementation", comparison.against, AGAINST)
    if comparison.against == "gguf":
        needs_llama_cpp("comparing with GGUF files")
    check_given(comparison.pictures)
    assistant = load_assistant(comparison.folder)
    other = AGAINST[comparison.against](comparison, assistant)
    with _pictures(comparison.pictures) as shown:
        return compare(Caldera(assistant), other, shown, assistant.processor, progress)


def check_given(paths: Sequence[Path]) -> None:
    """Open a user's pictures before anything else is done.

    Raises:
        PictureError: One cannot be used.
    """
    if paths:
        check_readable(paths)


@contextmanager
def _pictures(paths: Sequence[Path]) -> Iterator[list[Shown]]:
    """Give the pictures to compare on: a user's, or drawn ones, which are removed again."""
    if paths:
        yield given_pictures(paths)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield drawn_pictures(Path(folder))


def parity_json(parity: Parity) -> dict[str, Any]:
    """Return a comparison as JSON holds it; a difference without a size, as of two prompts, is null."""
    equal, total = parity.counted
    content = asdict(parity)
    for gap in content["gaps"]:
        gap["largest"] = None if gap["largest"] == float("inf") else gap["largest"]
    return {**content, "equal_answers": equal, "counted_answers": total, "good": parity.good}
