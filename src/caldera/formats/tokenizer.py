"""Tokenizers of model folders, with and without the image token."""

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from caldera.errors import CalderaError, ModelFormatError
from caldera.formats.config import accept_old_keys, read_json
from caldera.formats.safetensors_files import check_inside_folder
from caldera.formats.sentencepiece_model import SENTENCEPIECE_FILE
from caldera.formats.slow_tokenizer import load_slow_tokenizer

IMAGE_TOKEN = "<image>"
_PAD_TOKEN = "<pad>"

TOKENIZER_FILE = "tokenizer.json"
"""A fast tokenizer."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a folder's tokenizer: its `tokenizer.json` as it is, or else its SentencePiece model.

    transformers 5 builds LLaMA's class anew from the vocabulary and merges of the file, with another rule for spaces.

    Raises:
        ModelFormatError: It is missing, broken, or not a fast one.
        UsageError: The package that reads its file is not installed.
    """
    read_json(folder / "tokenizer_config.json", required=False)  # rejects settings that run code
    try:
        if (folder / TOKENIZER_FILE).is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if (folder / SENTENCEPIECE_FILE).is_file():
            return load_slow_tokenizer(folder)
        with accept_old_keys():  # transformers reads the folder's config.json, too
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
    except CalderaError:
        raise
    except Exception as error:  # noqa: BLE001 - tokenizers' Rust code raises Exception itself
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelFormatError(
            f"{folder} has no tokenizer that transformers can load ({reason})"
        ) from None
    files = [name for key, name in tokenizer.vocab_files_names.items() if key != "tokenizer_file"]
    if missing := [name for name in files or [TOKENIZER_FILE] if not (folder / name).is_file()]:
        # transformers builds a tokenizer without words then
        raise ModelFormatError(
            f"{folder} has no {TOKENIZER_FILE}, no {SENTENCEPIECE_FILE} and no {' and no '.join(missing)}; copy its "
            "tokenizer again"
        )
    if not tokenizer.is_fast:
        raise ModelFormatError(f"the tokenizer in {folder} is not a fast one (tokenizer.json)")
    return tokenizer  # type: ignore[return-value] # fast, as checked


def image_token_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the id of the image token.

    Raises:
        ModelFormatError: The tokenizer has none.
    """
    vocabulary = tokenizer.get_vocab()
    if IMAGE_TOKEN not in vocabulary:
        raise ModelFormatError(
            f"the tokenizer in {tokenizer.name_or_path} has no token {IMAGE_TOKEN!r}, which images need; "
            "copy the model folder again"
        )
    return vocabulary[IMAGE_TOKEN]


def add_image_token(tokenizer: PreTrainedTokenizerFast) -> None:
    """Add the image token, and a padding token if there is no separate one."""
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
    )
    if tokenizer.pad_token in (None, tokenizer.unk_token):
        tokenizer.add_special_tokens({"pad_token": _PAD_TOKEN})


def added_token_ids(tokenizer: PreTrainedTokenizerFast, num_rows: int) -> list[int]:
    """Return the ids of what `add_image_token` added, and of embedding rows without a token: none is ever supervised.

    Args:
        tokenizer: Of the model, with the image token.
        num_rows: Rows of the model's embedding table.
    """
    image_id = image_token_id(tokenizer)
    pad_id = tokenizer.get_vocab().get(_PAD_TOKEN, -1)
    added = [image_id, pad_id] if pad_id > image_id else [image_id]
    return [*added, *range(len(tokenizer), num_rows)]


def vocab_size_without_image(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the number of tokens before those that `add_image_token` appended.

    Raises:
        ModelFormatError: The image token is not at the end of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    count = len(vocabulary)
    for name in (_PAD_TOKEN, IMAGE_TOKEN):
        if vocabulary.get(name) == count - 1:
            count -= 1
    if image_token_id(tokenizer) < count:
        raise ModelFormatError(
            f"the token {IMAGE_TOKEN!r} is number {vocabulary[IMAGE_TOKEN]} of {len(vocabulary)}, before others; "
            "without it those would move"
        )
    return count


def copy_sentencepiece(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Copy the SentencePiece model of the folder that a tokenizer was loaded from, if it is there."""
    file = Path(tokenizer.name_or_path) / SENTENCEPIECE_FILE
    if file.is_file():
        shutil.copyfile(check_inside_folder(file), folder / SENTENCEPIECE_FILE)
