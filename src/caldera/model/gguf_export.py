"""A model folder in, the two files out that llama.cpp runs it from: the language model, and tower with projector."""

from dataclasses import dataclass
from pathlib import Path

from caldera.batches.templates import find_template
from caldera.batches.text_ids import start_ids
from caldera.errors import ModelFormatError, OutputError
from caldera.model.chat_templates import chat_template
from caldera.model.folder import LlavaBundle, eos_token_ids, open_lazily
from caldera.model.gguf_language import language_architecture, language_settings, language_tensors
from caldera.model.gguf_template import gguf_template
from caldera.model.gguf_tokens import tokenizer_metadata
from caldera.model.gguf_vision import (
    ClassToken,
    check_vision,
    projector_tensors,
    vision_settings,
    vision_tensors,
)
from caldera.model.gguf_writing import GgufDtype, needs_gguf, write_gguf
from caldera.model.weights import LANGUAGE, PROJECTOR, VISION, select_part
from caldera.progress import Progress
from caldera.storage import atomic_folder

LANGUAGE_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """Where the two files of a model stand."""

    language: Path
    vision: Path


def gguf_files(folder: Path) -> GgufFiles:
    """Name the two files of an exported folder.

    Raises:
        ModelFolderError: One is missing.
    """
    files = GgufFiles(folder / LANGUAGE_FILE, folder / VISION_FILE)
    for file in (files.language, files.vision):
        if not file.is_file():
            raise ModelFormatError(
                f"{file} is missing; write it with 'caldera export MODEL --to gguf --out {folder}'"
            )
    return files


def chat_template_of(assistant: LlavaBundle) -> str:
    """Return the chat template that a model's GGUF file gets: caldera's own, never one out of the folder."""
    tokenizer = assistant.tokenizer
    jinja = chat_template(find_template(assistant.card.template), starts=bool(start_ids(tokenizer)))
    return gguf_template(jinja, tokenizer.bos_token, tokenizer.eos_token)


def write_gguf_files(
    folder: Path,
    out: Path,
    kind: GgufDtype,
    progress: Progress,
    class_token: ClassToken = "last",
) -> GgufFiles:
    """Write `model.gguf` and `mmproj.gguf`, both or none.

    Args:
        folder: A model folder.
        out: Folder for the files; one that stands there is replaced only if it holds such files alone.
        kind: How matrices are held.
        progress: Follows the work, tensor by tensor; no more than one is in memory.
        class_token: Where the llama.cpp that will run the files puts it.

    Raises:
        UsageError: The package gguf is missing.
        ModelFolderError: llama.cpp cannot express the model; nothing is written.
        OutputError: The files could not be written.
    """
    needs_gguf("exporting to GGUF")
    _check_place(out)
    assistant, weights = open_lazily(folder)
    card, text = assistant.card, assistant.model.language.config
    sight = assistant.model.vision.tower.config
    check_vision(sight, card)
    name = language_architecture(text)
    words = language_tensors(text, select_part(weights, LANGUAGE))
    sights = vision_tensors(sight, card, select_part(weights, VISION), class_token)
    sights += projector_tensors(card, select_part(weights, PROJECTOR))
    title = {"general.name": folder.resolve().name}
    language = {
        **title,
        **language_settings(text),
        **tokenizer_metadata(assistant.tokenizer, text.vocab_size, eos_token_ids(assistant)),
        "tokenizer.chat_template": chat_template_of(assistant),
    }
    tower = title | vision_settings(sight, card, assistant.processor, text.hidden_size, class_token)
    with (
        atomic_folder(out) as fresh,
        progress.task(f"writing {kind}", len(words) + len(sights)) as tick,
    ):
        write_gguf(fresh / LANGUAGE_FILE, name, language, words, kind, tick)
        write_gguf(fresh / VISION_FILE, "clip", tower, sights, kind, tick)
    return gguf_files(out)


def _check_place(out: Path) -> None:
    """Refuse to replace a folder that holds anything else.

    Raises:
        OutputError: It does.
    """
    if not out.exists():
        return
    strange = (
        [out.name]
        if not out.is_dir()
        else [each.name for each in out.iterdir() if each.name not in (LANGUAGE_FILE, VISION_FILE)]
    )
    if strange:
        raise OutputError(
            f"{out} is there and holds {sorted(strange)[0]!r}; choose an --out that does not exist yet"
        )
