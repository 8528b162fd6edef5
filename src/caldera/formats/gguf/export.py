"""Write both GGUF files.

llama-cpp-python hands an image over as a part of text, llama.cpp's own programs as a piece of one text; both call it
`<__media__>` or `<__media_...__>`. What is put before a template here makes texts of all messages, with a lone
image's mark on a line before the words, as caldera's templates have it.
"""

from dataclasses import dataclass
from pathlib import Path

from caldera.errors import ModelFormatError, OutputError
from caldera.files.atomic import atomic_folder
from caldera.formats.gguf.language_model import (
    language_architecture,
    language_settings,
    language_tensors,
)
from caldera.formats.gguf.tokenizer import tokenizer_metadata
from caldera.formats.gguf.vision_tower import (
    ClassToken,
    check_vision,
    projector_tensors,
    vision_settings,
    vision_tensors,
)
from caldera.formats.gguf.writer import GgufDtype, needs_gguf, write_gguf
from caldera.formats.model_folder import open_lazily
from caldera.formats.weight_names import LANGUAGE, PROJECTOR, VISION, select_part
from caldera.model.assistant import LlavaBundle, eos_token_ids
from caldera.progress import Progress
from caldera.templates.jinja import chat_template
from caldera.templates.template import find_template
from caldera.templates.tokenization import start_ids

_GATHER = (
    "{% set gathered = namespace(messages=[]) %}"
    "{% for message in messages %}"
    "{% set said = namespace(text='') %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}"
    "{% else %}{% for part in message['content'] %}{% if 'text' in part %}"
    "{% set said.text = said.text ~ part['text'] %}{% endif %}{% endfor %}{% endif %}"
    "{% set pieces = said.text.split('<__media') %}"
    "{% if pieces | length == 2 and '__>' in pieces[1] %}"
    "{% set after = pieces[1].split('__>') %}"
    "{% set mark = '<__media' ~ after[0] ~ '__>' %}"
    "{% set words = (pieces[0] ~ (after[1:] | join('__>'))) | trim %}"
    "{% set said.text = (mark ~ '\\n' ~ words) | trim %}"
    "{% endif %}"
    "{% set gathered.messages = gathered.messages + [{'role': message['role'], 'content': said.text}] %}"
    "{% endfor %}"
    "{% set messages = gathered.messages %}"
)


def gguf_template(template: str, start: str | None, end: str | None) -> str:
    """Return a chat template for `tokenizer.chat_template`.

    Args:
        template: A Jinja template that writes messages whose content is text as it is.
        start: Spelling of the tokenizer's start mark; llama-cpp-python itself gives none to a template.
        end: Spelling of its end mark.
    """
    marks = {"bos_token": start, "eos_token": end}
    said = [f"{{% set {name} = {mark!r} %}}" for name, mark in marks.items() if mark is not None]
    return "".join((*said, _GATHER, template))


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
