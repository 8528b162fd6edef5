"""Exported tokenizers are written as transformers 4.37 and tokenizers 0.15 read them."""

import json
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.formats.original.tokenizer import write_tokenizer
from caldera.formats.tokenizer import add_image_token, load_tokenizer
from tests.formats.conftest import WORDS, Write, run_import
from tests.hard_texts import hard_texts


def export(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[str, ...]:
    """Export a tokenizer as an assistant has it: with the image token."""
    folder.mkdir()
    add_image_token(tokenizer)
    return write_tokenizer(tokenizer, folder)


def read(folder: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    """Read a file of settings."""
    return dict(json.loads((folder / name).read_text()))


def without_sentencepiece(words_folder: Path, folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `words_folder` from a folder that has only its fast form."""
    load_tokenizer(words_folder).save_pretrained(folder)
    return load_tokenizer(folder)


def test_the_files_have_nothing_of_transformers_5(tmp_path: Path, words_folder: Path) -> None:
    """LLaMA's class with the source's `legacy`, merges as strings, and only settings that 4.37 knows."""
    assert export(load_tokenizer(words_folder), tmp_path / "out") == ()
    config = read(tmp_path / "out")
    assert (config["tokenizer_class"], config["legacy"]) == ("LlamaTokenizer", True)
    assert (config["pad_token"], config["bos_token"]) == ("<unk>", "<s>")
    assert not config.keys() & {"extra_special_tokens", "backend", "is_local", "local_files_only"}
    content = read(tmp_path / "out", "tokenizer.json")
    assert all(isinstance(merge, str) for merge in content["model"]["merges"])
    assert "ignore_merges" not in content["model"]
    assert [token["content"] for token in content["added_tokens"]] == ["<unk>", "<s>", "</s>"]
    model = (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert model == (words_folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("legacy", [True, False])
def test_a_missing_sentencepiece_model_is_written(
    tmp_path: Path, words_folder: Path, legacy: bool
) -> None:
    """The pieces and merges of tokenizer.json give SentencePiece the ids of the model that they came from."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.model").write_bytes((words_folder / "tokenizer.model").read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    assert export(without_sentencepiece(source, tmp_path / "fast"), tmp_path / "out") == ()
    written, original = (
        SentencePieceProcessor(str(folder / "tokenizer.model"))
        for folder in (tmp_path / "out", source)
    )
    assert len(written) == len(original) == WORDS
    for text in [*hard_texts(500), "USER: what is there?   \n\n a dog"]:
        assert written.encode(text) == original.encode(text)
    assert read(tmp_path / "out")["legacy"] is legacy


@pytest.mark.parametrize("change", ["merges", "order", "splits", "ids"])
def test_a_tokenizer_that_is_no_sentencepiece_model_stays_fast(
    tmp_path: Path, words_folder: Path, change: str
) -> None:
    """Without a merge, with merges in turns, with a split at digits, or with a gap in the ids there is none."""
    tokenizer = without_sentencepiece(words_folder, tmp_path / "fast")
    if change == "splits":
        split = pre_tokenizers.Split(Regex(r"\d"), "isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = split
    else:
        content = read(tmp_path / "fast", "tokenizer.json")
        merges, vocabulary = content["model"]["merges"], content["model"]["vocab"]
        results = ["".join(pair) for pair in merges]
        twice = next(result for result in results if results.count(result) > 1)
        if change == "merges":
            del merges[results.index(twice)]
        elif change == "order":
            merges.append(merges.pop(results.index(twice)))
        else:
            vocabulary[max(vocabulary, key=vocabulary.__getitem__)] += 1
        (tmp_path / "fast" / "tokenizer.json").write_text(json.dumps(content))
        tokenizer = load_tokenizer(tmp_path / "fast")

    [note] = export(tokenizer, tmp_path / "out")

    assert "not a SentencePiece model" in note
    assert read(tmp_path / "out")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not (tmp_path / "out" / "tokenizer.model").exists()


def test_saved_models_keep_the_sentencepiece_model(
    tmp_path: Path, write_original: Write, clip_folder: Path, words_folder: Path
) -> None:
    """Import, save, load and save keep tokenizer.model."""
    run_import(tmp_path / "imported", source=write_original(), vision=clip_folder)
    save_model_folder(tmp_path / "saved", load_model_folder(tmp_path / "imported"))
    save_model_folder(tmp_path / "again", load_model_folder(tmp_path / "saved"))
    model = (words_folder / "tokenizer.model").read_bytes()
    for name in ("imported", "saved", "again"):
        assert (tmp_path / name / "tokenizer.model").read_bytes() == model
        assert (
            load_tokenizer(tmp_path / name)("a</s>b").input_ids
            == load_tokenizer(words_folder)("a</s>b").input_ids
        )
