"""Chat templates of model folders: the one that is written, and the known one that a third-party folder's equals."""

import shlex
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.config import read_json
from caldera.formats.hub_models import shown_name
from caldera.templates.detection import DetectedTemplate, detect_template
from caldera.templates.jinja import chat_template, spaces_images
from caldera.templates.registry import find_template
from caldera.templates.tokenization import start_ids

_JSON_FILES = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Files with a chat template as a setting, in the order in which transformers prefers them."""

_TEMPLATES_OF_LANGUAGES = {"mistral": "mistral_instruct", "qwen2": "qwen", "qwen3": "qwen"}
"""Likely templates by the `model_type` of the language model."""


def folder_chat_template(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a known template in Jinja for a model folder, with the start token that the tokenizer adds.

    Servers such as vLLM tokenize a rendered chat without adding special tokens. A tokenizer that puts a space before
    the first text only needs it written behind a start token, to give the same ids.
    """
    template = find_template(name)
    starts = bool(start_ids(tokenizer))
    spaced = spaces_images(template, tokenizer)
    jinja = chat_template(template, starts=starts, spaces_images=spaced)
    if not starts:
        return jinja
    ids = tokenizer(template.prefix).input_ids
    written = tokenizer(f"{tokenizer.bos_token}{template.prefix}", add_special_tokens=False)
    return f"{{{{ bos_token }}}}{'' if written.input_ids == ids else ' '}{jinja}"


def read_chat_template(folder: Path) -> str | None:
    """Return the source of a folder's chat template; None if it has none."""
    file = folder / "chat_template.jinja"
    try:
        if file.is_file():
            return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"{file} cannot be read: {error}") from None
    for name in _JSON_FILES:
        source = _default_template(read_json(folder / name, required=False).get("chat_template"))
        if source is not None:
            return source
    return None


def _default_template(setting: Any) -> str | None:  # noqa: ANN401 - JSON
    """Return the template of a setting, which may list several by name."""
    if isinstance(setting, list):
        by_name = {item["name"]: item["template"] for item in setting if isinstance(item, dict)}
        setting = by_name.get("default")
    return setting if isinstance(setting, str) else None


def require_known_template(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the name of the known template that a folder's chat template equals.

    Raises:
        ModelFormatError: It equals none, so the user must choose; the message names the command and the nearest ones.
    """
    source = read_chat_template(folder)
    detected = DetectedTemplate(None, (), "it has none")
    if source is not None:
        tokens = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")
        detected = detect_template(source, *tokens)
    if detected.name is not None:
        return detected.name
    name, nearest = shown_name(folder), ", ".join(detected.candidates)
    language = read_json(folder / "config.json").get("text_config")
    model_type = language.get("model_type") if isinstance(language, dict) else None
    names = (
        f"the nearest: {nearest}; for LLaVA's own weights NAME_original"
        if nearest
        else f"likely, by its language model: {_TEMPLATES_OF_LANGUAGES.get(str(model_type), 'vicuna_v1')}"
    )
    raise ModelFormatError(
        f"the chat template of {name} is none that caldera knows ({detected.reason}), and a wrong one gives poor "
        f"answers without an error; choose one: caldera import {shlex.quote(name)} --template NAME --out FOLDER "
        f"({names}; docs/templates.md lists all)"
    )
