"""A model folder in, the two files out that llama.cpp runs it from: the language model, and tower with projector."""

from dataclasses import dataclass
from pathlib import Path

from caldera.errors import ModelFolderError, OutputError
from caldera.model.card import Card, read_card
from caldera.model.chat_template import CHAT_TEMPLATE
from caldera.model.folder import load_tokenizer
from caldera.model.gguf_language import (
    language_architecture,
    language_config,
    language_pieces,
    language_settings,
)
from caldera.model.gguf_template import gguf_template
from caldera.model.gguf_tokens import token_settings
from caldera.model.gguf_vision import (
    ClassToken,
    check_vision,
    vision_config,
    vision_pieces,
    vision_settings,
)
from caldera.model.gguf_writing import Kind, needs_gguf, write_gguf
from caldera.model.lazy_weights import LazyWeights
from caldera.model.preparation import load_processor
from caldera.progress import Progress
from caldera.storage import whole_folder

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
            raise ModelFolderError(
                f"{file} is missing; write it with 'caldera export MODEL --to gguf --out {folder}'"
            )
    return files


def chat_template(card: Card) -> str:
    """Return the chat template that a model's GGUF file gets: caldera's own, never one out of the folder."""
    return gguf_template(CHAT_TEMPLATE)


def write_gguf_files(
    folder: Path,
    out: Path,
    kind: Kind,
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
    card, processor = read_card(folder), load_processor(folder)
    text, vision = language_config(folder), vision_config(folder)
    check_vision(vision, card)
    weights = LazyWeights(folder)
    name = language_architecture(text)
    tokens = token_settings(load_tokenizer(folder), text.vocab_size)
    words = language_pieces(folder, text, weights)
    sights = vision_pieces(folder, vision, card, weights, text.hidden_size, class_token)
    title = {"general.name": folder.resolve().name}
    language = {
        **title,
        **language_settings(text),
        **tokens,
        "tokenizer.chat_template": chat_template(card),
    }
    tower = title | vision_settings(vision, card, processor, text.hidden_size, class_token)
    with (
        whole_folder(out) as fresh,
        progress.job(f"writing {kind}", len(words) + len(sights)) as tick,
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
