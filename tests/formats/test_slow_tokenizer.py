"""Folders with only a SentencePiece model give the ids of transformers' slow tokenizers, and keep them when saved."""

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from caldera.errors import ModelFormatError
from caldera.formats.sentencepiece_model import read_model
from caldera.formats.tokenizer import load_tokenizer
from tests.hard_texts import SPECIAL, hard_texts
from tests.real_tokenizers import LOW_LINE, data_file

WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Write a folder with Mistral's first SentencePiece model, which is made like LLaMA's, and settings."""

    def write(name: str = "tokenizer.model.v1", **settings: object) -> Path:
        folder = tmp_path / "slow"
        folder.mkdir()
        shutil.copyfile(data_file(name), folder / "tokenizer.model")
        if settings:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return write


@cache
def read_slow(prefix: bool) -> SentencePieceProcessor:
    """Read the model of `write_folder`, with or without a space in front of each text."""
    model = read_model(data_file("tokenizer.model.v1"))
    model.normalizer_spec.add_dummy_prefix = prefix
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def slow_ids(text: str, *, legacy: bool) -> list[int]:
    """Return the ids of a text by the rules of transformers' slow LLaMA tokenizer.

    Each text between special tokens is SentencePiece's: by the older rule with a space in front of each, by the newer
    one only in front of the first, whatever it starts with.
    """
    slow = read_slow(legacy)
    parts = re.split(f"({'|'.join(map(re.escape, SPECIAL))})", text)
    if not legacy and parts[0]:
        parts[0] = LOW_LINE + parts[0]
    ids = [1]
    for part in parts:
        ids += [slow.piece_to_id(part)] if part in SPECIAL else slow.encode(part)
    return ids


@pytest.mark.parametrize("legacy", [True, False, None])
@pytest.mark.parametrize("count", [100, pytest.param(3_000, marks=pytest.mark.slow)])
def test_the_prefix_follows_the_legacy_key(
    write_folder: WriteFolder, tmp_path: Path, legacy: bool | None, count: int
) -> None:
    """The ids are the slow tokenizer's, also after saving and in transformers' own loader; no key means legacy."""
    settings = {} if legacy is None else {"legacy": legacy, "tokenizer_class": "LlamaTokenizer"}
    tokenizer = load_tokenizer(write_folder(**settings))
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    by_transformers = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ["", " ", "  a", "a</s> b", *hard_texts(count)]:
        expected = slow_ids(text, legacy=legacy is not False)
        assert tokenizer(text).input_ids == expected, text
        assert saved(text).input_ids == expected, text
        assert by_transformers(text).input_ids == expected, text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["legacy"] is (
        legacy is not False
    )


def test_mistrals_turns_keep_their_leading_space(write_folder: WriteFolder) -> None:
    """Text behind `</s>` starts with a space by the older rule, so `[INST]` has one in every turn."""
    tokenizer = load_tokenizer(write_folder())
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("[INST] a [/INST] b</s>[INST] c").input_ids)
    first = [LOW_LINE + "[", "INST", "]"]
    assert tokens[1:4] == first
    assert tokens[tokens.index("</s>") + 1 :][:3] == first


def test_added_tokens_keep_ids_and_flags(write_folder: WriteFolder) -> None:
    """Tokens of tokenizer_config.json follow the vocabulary; a text is not changed before they are looked for."""
    flags = {"lstrip": False, "rstrip": True, "single_word": False, "normalized": True}
    decoder = {
        "32000": {"content": "<|end|>", **flags, "special": True},
        "32001": {"content": "<tool>", **flags, "rstrip": False, "special": False},
    }
    folder = write_folder(
        added_tokens_decoder=decoder, eos_token="<|end|>", pad_token="<pad>", legacy=True
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == 32000
    assert tokenizer.pad_token_id == 32002
    assert tokenizer("a<|end|>  b<tool>").input_ids == [
        *slow_ids("a", legacy=True),
        32000,
        *slow_ids("b", legacy=True)[1:],
        32001,
    ]
    assert 32001 not in tokenizer.all_special_ids


def test_the_older_files_are_read(write_folder: WriteFolder) -> None:
    """added_tokens.json has ids, and special_tokens_map.json goes before tokenizer_config.json."""
    folder = write_folder(pad_token="<other>")
    (folder / "added_tokens.json").write_text(json.dumps({"[PAD]": 32000}))
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"pad_token": {"content": "[PAD]"}, "additional_special_tokens": ["<x>"]})
    )
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", 32000)
    assert tokenizer.convert_tokens_to_ids("<x>") == 32001
    assert len(tokenizer) == 32002


def test_named_special_tokens_are_read(write_folder: WriteFolder) -> None:
    """The tokens of a model may have names of their own."""
    tokenizer = load_tokenizer(write_folder(extra_special_tokens={"image_token": "<picture>"}))
    assert tokenizer.convert_tokens_to_ids("<picture>") == 32000


def test_control_tokens_are_special(write_folder: WriteFolder) -> None:
    """Mistral's later models have `[INST]` as a control token, which then is a special token."""
    tokenizer = load_tokenizer(write_folder("mistral_instruct_tokenizer_240323.model.v3"))
    assert tokenizer("[INST]").input_ids == [1, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"added_tokens_decoder": {"32005": {"content": "<x>"}}},
            "'<x>' the id 32005, but .* 32000",
        ),
        ({"tokenizer_class": "CamembertTokenizer"}, "class 'CamembertTokenizer' may change texts"),
        ({"eos_token": {"id": 3}}, "has no tokenizer that transformers can load"),
        ({"added_tokens_decoder": [3]}, "has no tokenizer that transformers can load"),
    ],
)
def test_impossible_settings_are_rejected(
    write_folder: WriteFolder, settings: dict[str, object], message: str
) -> None:
    """The message names the setting."""
    with pytest.raises(ModelFormatError, match=message):
        load_tokenizer(write_folder(**settings))


@pytest.mark.parametrize("number", ["32000", 32000.0, None])
def test_ids_that_are_not_whole_numbers_are_rejected(
    write_folder: WriteFolder, number: object
) -> None:
    """The message names the file and the token."""
    folder = write_folder()
    (folder / "added_tokens.json").write_text(json.dumps({"<x>": number}))
    with pytest.raises(ModelFormatError, match=r"added_tokens.json gives '<x>' an id that is not"):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", None])
def test_a_folder_without_a_vocabulary_is_rejected(tmp_path: Path, name: str | None) -> None:
    """Transformers builds a tokenizer without words from the settings alone."""
    settings = {} if name is None else {"tokenizer_class": name}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelFormatError, match=r"has no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_fast_tokenizer_is_read_as_it_is(write_folder: WriteFolder, tmp_path: Path) -> None:
    """Transformers 5 would build LLaMA's class with another rule for spaces than its tokenizer.json has."""
    load_tokenizer(write_folder(legacy=True)).save_pretrained(tmp_path / "fast")
    file = tmp_path / "fast" / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "tokenizer_class": "LlamaTokenizer", "legacy": False}))
    assert load_tokenizer(tmp_path / "fast")("  a</s>b").input_ids == slow_ids(
        "  a</s>b", legacy=True
    )


def test_the_tokenizers_of_the_original_are_read_alike(third_party: Path) -> None:
    """The fast tokenizer that transformers 4.37.2 made of a slow folder has the same ids."""
    folder = third_party / "original_llava" / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    slow, fast = (load_tokenizer(folder / name) for name in ("vicuna_legacy", "vicuna_fast437"))
    texts = hard_texts(300)
    assert [slow(text).input_ids for text in texts] == [fast(text).input_ids for text in texts]
