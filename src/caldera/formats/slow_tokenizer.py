"""Tokenizers of folders that have a SentencePiece model and no fast tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.config import read_json
from caldera.formats.sentencepiece_model import SENTENCEPIECE_FILE, Prefix, read_model, to_fast

_LLAMA, _GEMMA = "LlamaTokenizer", "GemmaTokenizer"
"""Classes whose slow tokenizers are a SentencePiece model and added tokens, nothing else."""

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""Special tokens with a role, in the order in which transformers adds those that the vocabulary lacks."""


def load_slow_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the SentencePiece model of a folder as a fast tokenizer, with the ids of transformers' slow one.

    Raises:
        ModelFormatError: A file is broken, or no fast tokenizer gives the same ids.
        UsageError: The package that reads SentencePiece models is not installed.
    """
    config = read_json(folder / "tokenizer_config.json", required=False)
    model = read_model(folder / SENTENCEPIECE_FILE)
    fast = to_fast(model, _prefix(folder, config, model))
    if "added_tokens_decoder" not in config:  # else transformers does not read the other file
        config.update(read_json(folder / "special_tokens_map.json", required=False))
    roles = _roles(config, model)
    extra = [
        *_listed(config, "additional_special_tokens"),
        *_listed(config, "extra_special_tokens"),
    ]
    _add_tokens(fast, folder, _numbered(folder, config), [*roles.values(), *extra])
    names: dict[str, Any] = {role: token.content for role, token in roles.items()}
    return PreTrainedTokenizerFast.from_pretrained(
        folder,
        local_files_only=True,
        tokenizer_object=fast,
        vocab_file="",  # else transformers would convert the model, too
        added_tokens_decoder={},
        extra_special_tokens=[token.content for token in extra],
        legacy=_legacy(config),
        add_bos_token=config.get("add_bos_token", True),
        add_eos_token=config.get("add_eos_token", False),
        **names,
    )


def _legacy(config: Mapping[str, Any]) -> bool:
    """Return whether every text after a special token gets a space in front, as it does if the key is missing."""
    legacy = config.get("legacy")
    return True if legacy is None else bool(legacy)


def _prefix(folder: Path, config: Mapping[str, Any], model: Any) -> Prefix:  # noqa: ANN401 - see read_model
    """Return which texts get a space in front, by the rules of transformers' slow classes."""
    name = str(config.get("tokenizer_class") or _LLAMA).removesuffix("Fast")
    if name not in (_LLAMA, _GEMMA):
        raise ModelFormatError(
            f"{folder} has only {SENTENCEPIECE_FILE}, and its class {name!r} may change texts in its own way; save a "
            "tokenizer.json with the transformers that the model was made with"
        )
    if name == _GEMMA or _legacy(config):
        return "each" if model.normalizer_spec.add_dummy_prefix else "none"
    if model.normalizer_spec.remove_extra_whitespaces:
        raise ModelFormatError(
            f"{folder / SENTENCEPIECE_FILE} removes spaces, and tokenizer_config.json has legacy false; no fast "
            "tokenizer does both as transformers' slow one does"
        )
    return "none" if config.get("add_prefix_space") is False else "first"


def _roles(config: Mapping[str, Any], model: Any) -> dict[str, AddedToken]:  # noqa: ANN401 - see read_model
    """Return the special tokens by role; those that no file names are SentencePiece's own."""
    trainer, pieces = model.trainer_spec, {piece.piece for piece in model.pieces}
    own = {
        "bos_token": trainer.bos_piece,
        "eos_token": trainer.eos_piece,
        "unk_token": trainer.unk_piece,
    }
    tokens = {role: config.get(role, own.get(role)) for role in _ROLES}
    return {
        role: _added_token(token)
        for role, token in tokens.items()
        if token and (role in config or token in pieces)
    }


def _listed(config: Mapping[str, Any], key: str) -> list[AddedToken]:
    """Return the special tokens without a role; newer files may give each a name."""
    tokens = config.get(key) or []
    return [
        _added_token(token) for token in (tokens.values() if isinstance(tokens, dict) else tokens)
    ]


def _numbered(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Return the added tokens of a folder by id."""
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"].items()
        return {int(number): _added_token(token) for number, token in decoder}
    file = folder / "added_tokens.json"
    numbers = read_json(file, required=False).items()
    if wrong := [token for token, number in numbers if type(number) is not int]:
        raise ModelFormatError(f"{file} gives {wrong[0]!r} an id that is not a whole number")
    return {number: _added_token({"content": token, "special": False}) for token, number in numbers}


def _added_token(setting: str | Mapping[str, Any]) -> AddedToken:
    """Return an added token; the text of none is changed before it is looked for, as in slow tokenizers."""
    settings = {"content": setting} if isinstance(setting, str) else setting
    flags = {name: settings.get(name, False) for name in ("lstrip", "rstrip", "single_word")}
    special = settings.get("special", True)
    return AddedToken(settings["content"], normalized=False, special=special, **flags)


def _add_tokens(
    fast: Tokenizer,
    folder: Path,
    numbered: Mapping[int, AddedToken],
    special: Sequence[AddedToken],
) -> None:
    """Add tokens in the order of their ids, then those without one, or raise ModelFormatError if an id is not free."""
    for number, token in sorted(numbered.items()):
        fast.add_tokens([token])
        if fast.token_to_id(token.content) != number:
            raise ModelFormatError(
                f"{folder} gives the added token {token.content!r} the id {number}, but after the pieces of "
                f"{SENTENCEPIECE_FILE} and the tokens before it, it is {fast.token_to_id(token.content)}"
            )
    declared = {token.content: token for token in numbered.values()}
    fast.add_special_tokens([declared.get(token.content, token) for token in special])
