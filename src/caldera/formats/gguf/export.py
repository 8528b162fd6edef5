"""Export of a model folder to GGUF files: `model.gguf` and `mmproj.gguf`.

llama-cpp-python passes an image as a part of the text, llama.cpp's own programs as a segment of a single text; both
write it as `<__media__>` or `<__media_...__>`. The prefix of the template turns all messages into text, with the marker
of a single image on a line before the text, as in caldera's templates.
"""

from dataclasses import dataclass
from pathlib import Path

from caldera.errors import ModelFormatError, OutputError
from caldera.extras import require_extra
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
from caldera.formats.gguf.writer import GgufDtype, write_gguf
from caldera.formats.open_model import open_model
from caldera.formats.weight_names import LANGUAGE, PROJECTOR, VISION, select_part
from caldera.model.bundle import LlavaBundle, eos_token_ids
from caldera.progress import Progress
from caldera.templates.jinja import chat_template
from caldera.templates.registry import find_template
from caldera.templates.tokenization import start_ids

LANGUAGE_FILE, VISION_FILE = "model.gguf", "mmproj.gguf"

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


def chat_template_of(assistant: LlavaBundle) -> str:
    """Return the chat template of a model's GGUF file: caldera's own, never one from the folder.

    llama-cpp-python passes no start token to a template, so both special tokens are set in it.
    """
    tokenizer = assistant.tokenizer
    jinja = chat_template(find_template(assistant.card.template), starts=bool(start_ids(tokenizer)))
    special_tokens = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    settings = "".join(
        f"{{% set {name} = {token!r} %}}"
        for name, token in special_tokens.items()
        if token is not None
    )
    return settings + _GATHER + jinja


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """Paths of a model's two files."""

    language: Path
    vision: Path


def gguf_files(folder: Path) -> GgufFiles:
    """Return the two files of an exported folder.

    Raises:
        ModelFormatError: One is missing.
    """
    files = GgufFiles(folder / LANGUAGE_FILE, folder / VISION_FILE)
    for file in (files.language, files.vision):
        if not file.is_file():
            raise ModelFormatError(
                f"{file} is missing; write it with 'caldera export MODEL --to gguf --out {folder}'"
            )
    return files


def write_gguf_files(
    folder: Path,
    out: Path,
    dtype: GgufDtype,
    progress: Progress,
    class_token: ClassToken = "last",
) -> GgufFiles:
    """Write `model.gguf` and `mmproj.gguf`, both or none.

    Args:
        folder: A model folder.
        out: Folder for the files; an existing one is replaced only if it holds nothing but such files.
        dtype: Type of the matrices.
        progress: Reports the progress, tensor by tensor; at most one tensor is in memory.
        class_token: Position of the class token in the llama.cpp that will run the files.

    Raises:
        UsageError: The package gguf is missing.
        ModelFormatError: llama.cpp cannot express the model; nothing is written.
        OutputError: The files could not be written.
    """
    require_extra("gguf", "exporting to GGUF", "gguf")
    _check_replaceable(out)
    assistant, weights = open_model(folder)
    metadata, text_config = assistant.card, assistant.model.language.config
    vision_config = assistant.model.vision.tower.config
    check_vision(vision_config, metadata)
    architecture = language_architecture(text_config)
    language = language_tensors(text_config, select_part(weights, LANGUAGE))
    vision = vision_tensors(vision_config, metadata, select_part(weights, VISION), class_token)
    vision += projector_tensors(metadata, select_part(weights, PROJECTOR))
    title = {"general.name": folder.resolve().name}
    language_keys = {
        **title,
        **language_settings(text_config),
        **tokenizer_metadata(assistant.tokenizer, text_config.vocab_size, eos_token_ids(assistant)),
        "tokenizer.chat_template": chat_template_of(assistant),
    }
    vision_keys = title | vision_settings(
        vision_config, metadata, assistant.processor, text_config.hidden_size, class_token
    )
    total = len(language) + len(vision)
    with atomic_folder(out) as fresh, progress.task(f"writing {dtype}", total) as tick:
        write_gguf(fresh / LANGUAGE_FILE, architecture, language_keys, language, dtype, tick)
        write_gguf(fresh / VISION_FILE, "clip", vision_keys, vision, dtype, tick)
    return gguf_files(out)


def _check_replaceable(out: Path) -> None:
    """Raise OutputError if there is anything but GGUF files at `out`."""
    if not out.exists():
        return
    others = (
        [path.name for path in out.iterdir() if path.name not in (LANGUAGE_FILE, VISION_FILE)]
        if out.is_dir()
        else [out.name]
    )
    if others:
        raise OutputError(
            f"{out} exists and holds {sorted(others)[0]!r}; choose an --out that does not exist yet"
        )
