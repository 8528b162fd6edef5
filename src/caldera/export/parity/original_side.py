"""The side of LLaVA's own layout in a comparison: its own code in another Python, or the folder imported again."""

import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from caldera.errors import ModelFormatError, UsageError
from caldera.export.parity.caldera_side import Caldera
from caldera.export.parity.compare import (
    COMPARED,
    OtherSide,
    ParityCase,
    StageOutputs,
    as_tensor,
    long_image_difference,
)
from caldera.formats.importing.import_model import open_source
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import with_weights
from caldera.formats.original.config import conversation_mode
from caldera.formats.tokenizer import vocab_size_without_image
from caldera.images.decoding import open_image
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import LlavaBundle, eos_token_ids

_WORKER = Path(__file__).with_name("original_worker.py")


class ImportedAgain(Caldera):
    """A folder in LLaVA's own layout, read as `caldera import` does: shows that its files are right."""

    name = "the re-imported folder"
    limits: Mapping[str, float] = dict.fromkeys(COMPARED, 1e-6)
    min_equal_answers = 1.0

    def __init__(self, folder: Path, assistant: LlavaBundle) -> None:
        """Import `folder`, the export of `assistant`, into memory."""
        source = open_source(ImportRequest(source=folder, template=assistant.card.template))
        super().__init__(with_weights(source.assistant, source.weights, torch.float32))
        self.vocab_size = vocab_size_without_image(assistant.tokenizer)
        self.notes = (
            "LLaVA's own code was not run: pass --python, a Python that has its package",
            _logits_note(self.vocab_size),
        )

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file as caldera does."""
        return np.asarray(open_image(path))

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Return None: both prepare images alike."""
        return None


class OriginalCode:
    """A folder loaded by LLaVA's own code, in a process of another Python."""

    name = "LLaVA's own code"
    limits: Mapping[str, float] = dict.fromkeys(COMPARED, 1e-4)
    min_equal_answers = 1.0

    def __init__(
        self,
        python: Path,
        process: subprocess.Popen[str],
        scratch: Path,
        assistant: LlavaBundle,
    ) -> None:
        """Use a process of the worker, and a folder for its files."""
        self._python, self._process, self._scratch = python, process, scratch
        self._image_token_id = assistant.model.image_token_id
        self._ends = set(eos_token_ids(assistant))
        self._mode = _require_mode(assistant.card.template)
        self.vocab_size = vocab_size_without_image(assistant.tokenizer)
        self.notes = (
            f"prompts are those of LLaVA's conversation mode {self._mode}",
            _logits_note(self.vocab_size),
        )
        self._wait()

    def _wait(self) -> None:
        """Wait for the worker's next line; raise ModelFormatError with its last words if it ended."""
        assert self._process.stdout
        if not self._process.stdout.readline():
            lines = (self._scratch / "stderr").read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "it ended without a word"
            raise ModelFormatError(f"LLaVA's own code failed in {self._python}: {reason}")

    def run(self, image: Image.Image, case: ParityCase) -> StageOutputs:
        """Run all stages from a decoded RGB image to an answer."""
        file, out = self._scratch / "image.png", self._scratch / "outputs.npz"
        image.save(file)
        message = {
            "image": str(file),
            "question": case.question,
            "mode": self._mode,
            "new_tokens": case.new_tokens,
            "out": str(out),
        }
        assert self._process.stdin
        self._process.stdin.write(f"{json.dumps(message)}\n")
        self._process.stdin.flush()
        self._wait()
        with np.load(out) as arrays:
            ids = tuple(
                self._image_token_id if token < 0 else token for token in arrays["ids"].tolist()
            )
            answer = itertools.takewhile(
                lambda token: token not in self._ends, arrays["answer"].tolist()
            )
            names = ("pixels", "features", "image_tokens", "logits")
            stages = {name: as_tensor(arrays[name]) for name in names}
        return StageOutputs(**stages, ids=ids, answer=tuple(answer))

    def read(self, path: Path) -> np.ndarray | None:
        """Decode a file as LLaVA's evaluation does."""
        return np.asarray(Image.open(path).convert("RGB"))

    def known_shape_difference(
        self, size: tuple[int, int], processor: ImageProcessor
    ) -> str | None:
        """Describe the rounding of long images."""
        return long_image_difference(size, processor)


def _require_mode(template: str) -> str:
    """Return the conversation mode of LLaVA's own code with a template's prompts; raise UsageError if it has none."""
    mode = conversation_mode(template)
    if mode is None:
        raise UsageError(
            f"LLaVA's own code has no conversation mode with the prompts of {template!r}, so it cannot be compared; "
            "without --python the folder is imported again and compared"
        )
    return mode


def _logits_note(vocab_size: int) -> str:
    return f"logits are those of LLaVA's {vocab_size} tokens, without the rows that caldera added"


@contextmanager
def open_original(folder: Path, assistant: LlavaBundle, python: Path | None) -> Iterator[OtherSide]:
    """Yield the side of a folder in LLaVA's own layout.

    Args:
        folder: The export of `assistant`.
        assistant: The model to compare with.
        python: A Python that has LLaVA's package `llava`; the folder is imported again if None.

    Raises:
        ModelFormatError: The folder cannot be loaded.
        UsageError: `python` cannot be started, or LLaVA's own code lacks the prompts.
    """
    if python is None:
        yield ImportedAgain(folder, assistant)
        return
    command = [str(python.absolute()), str(_WORKER), str(folder.absolute())]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with (scratch / "stderr").open("w") as stderr, _start(command, stderr) as process:
            yield OriginalCode(python, process, scratch, assistant)


def _start(command: list[str], stderr: IO[str]) -> subprocess.Popen[str]:
    """Start the worker."""
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}") from None
