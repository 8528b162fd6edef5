"""GGUF keys of tokenizers give llama.cpp the same tokens, and other tokenizers are rejected."""

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.gguf.tokenizer import tokenizer_metadata
from caldera.formats.sentencepiece_model import Prefix, read_model, to_fast
from tests.real_tokenizers import data_file


def wrap_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers' class."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_sentencepiece_scores_follow_the_merges() -> None:
    """A token that is merged earlier has a higher score; bytes, unknown and special tokens have their types."""
    vocabulary = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    ids = {word: number for number, word in enumerate(vocabulary)}
    model = models.BPE(
        ids,
        [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.ByteFallback()
    settings = tokenizer_metadata(wrap_tokenizer(bpe), 12)
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores")
    words, values = (list(settings[key]) for key in keys)  # type: ignore[arg-type]
    scores = {str(word): float(str(value)) for word, value in zip(words, values, strict=True)}
    assert settings["tokenizer.ggml.model"] == "llama"
    assert settings["tokenizer.ggml.add_space_prefix"] is True
    assert scores["ab"] > scores["▁a"] > scores["▁ab"] > scores["a"]
    assert settings["tokenizer.ggml.token_type"] == [2, 1, 3, 6, 1, 1, 1, 1, 1, 1, 5, 5]


@pytest.mark.parametrize("prefix", ["each", "first", "none"])
def test_a_converted_model_keeps_the_order_of_its_scores(
    words_folder: Path, prefix: Prefix
) -> None:
    """The pieces of a SentencePiece model are merged in the same order, with the same space in front."""
    model = read_model(words_folder / "tokenizer.model")
    settings = tokenizer_metadata(wrap_tokenizer(to_fast(model, prefix)), len(model.pieces))
    scores = settings["tokenizer.ggml.scores"]
    assert isinstance(scores, list)
    merged = [number for number, piece in enumerate(model.pieces) if scores[number] > -1e6]
    assert len(merged) > 20
    assert sorted(merged, key=lambda number: -model.pieces[number].score) == sorted(
        merged, key=lambda number: -scores[number]
    )
    assert settings["tokenizer.ggml.add_space_prefix"] is (prefix != "none")


def test_user_defined_symbols_are_rejected() -> None:
    """Letters would be merged across them by llama.cpp."""
    fast = to_fast(read_model(data_file("mistral_instruct_tokenizer_240323.model.v3")), "each")
    with pytest.raises(ModelFormatError, match=r"llama\.cpp has no way to prepare a text"):
        tokenizer_metadata(wrap_tokenizer(fast), 32768)


@pytest.mark.parametrize(
    ("pre_tokenizer", "message"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), r"\['ByteLevel'\]"),
        (pre_tokenizers.Whitespace(), r"\['Whitespace'\]"),
        (pre_tokenizers.Split(Regex("x+"), "isolated"), r"\['x\+'\]"),
    ],
)
def test_a_tokenizer_that_splits_otherwise_is_rejected(
    pre_tokenizer: pre_tokenizers.PreTokenizer, message: str
) -> None:
    """The message has its patterns and the known ones."""
    bpe = Tokenizer(models.BPE({"a": 0, "<unk>": 1, "</s>": 2}, []))
    bpe.pre_tokenizer = pre_tokenizer
    with pytest.raises(ModelFormatError, match=f"{message}.*gpt-2"):
        tokenizer_metadata(wrap_tokenizer(bpe), 5)


def test_more_tokens_than_embeddings_are_rejected(tokenizer: PreTrainedTokenizerFast) -> None:
    """A token without a row has no embedding to export."""
    with pytest.raises(ModelFormatError, match="only 300 embeddings"):
        tokenizer_metadata(tokenizer, 300)
