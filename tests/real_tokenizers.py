"""Tokenizers of the families of released models, by name, for the tests of templates.

`mistral-common` contains real vocabularies: SentencePiece models of Mistral's versions 1 and 3, and a tekken. It is not
imported, only its files are read. Families whose vocabulary is in no package are trained here, with their own special
tokens.
"""

import base64
import json
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_base import generate_merges

from caldera.conversation import IMAGE_PLACEHOLDER
from caldera.templates.registry import TEMPLATES

LOW_LINE = "\u2581"
"""SentencePiece's replacement of a space, which it does not distinguish from a space."""

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: What is in the image?\n ASSISTANT: A dog, a cat and 2 birds.\n\n",
    "system You are a helpful assistant. user Human: where is it? ###Assistant: It's on the left!  model [INST]",
] * 3
"""Training text of the trained tokenizers."""

GPT_2 = None
"""The built-in pattern of tokenizers' ByteLevel."""

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def data_file(name: str) -> Path:
    """Return the path of a file of mistral-common."""
    spec = find_spec("mistral_common")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


@cache
def sentencepiece(name: str) -> SentencePieceProcessor:
    """Load a SentencePiece model, the slow tokenizer."""
    return SentencePieceProcessor(str(data_file(name)))


@cache
def _pieces(name: str) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """Return vocabulary, merges and control tokens of a SentencePiece model."""
    slow = sentencepiece(name)
    vocabulary = {slow.id_to_piece(key): key for key in range(len(slow))}
    scores = {piece: slow.get_score(key) for piece, key in vocabulary.items()}
    control = [slow.id_to_piece(key) for key in range(len(slow)) if slow.is_control(key)]
    return vocabulary, generate_merges(vocabulary, scores, skip_tokens=control), control


def _low_lines(bpe: Tokenizer, first: bool) -> None:
    """Set the decoder of LLaMA's tokenizers."""
    steps: list[Any] = [decoders.Replace(LOW_LINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if first else steps)


def _start_with(bpe: Tokenizer, start: str) -> None:
    """Put a start token before every text."""
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))]
    )


def _llama(name: str, *, legacy: bool, end: str = "</s>") -> PreTrainedTokenizerFast:
    """Convert a SentencePiece model to a fast tokenizer as transformers does for LLaMA, legacy or not."""
    vocabulary, merges, control = _pieces(name)
    bpe = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        steps = [normalizers.Prepend(LOW_LINE), normalizers.Replace(" ", LOW_LINE)]
        bpe.normalizer = normalizers.Sequence(steps)
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(LOW_LINE, prepend_scheme="first", split=False)
    _low_lines(bpe, first=True)
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *control)])
    _start_with(bpe, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token=end, unk_token="<unk>"
    )


def _phi_3() -> PreTrainedTokenizerFast:
    """Return LLaMA's legacy tokenizer with role tokens that strip the white space after them, as Phi-3's do."""
    tokenizer = _llama("tokenizer.model.v1", legacy=True)
    tokens = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>")
    tokenizer.add_tokens(
        [AddedToken(token, rstrip=True, normalized=False, special=True) for token in tokens]
    )
    tokenizer.eos_token = "<|endoftext|>"
    return tokenizer


def _gemma() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Gemma's: low lines for spaces, and none before a text."""
    vocabulary, merges, control = _pieces("tokenizer.model.v1")
    bpe = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    bpe.normalizer = normalizers.Replace(" ", LOW_LINE)
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    _low_lines(bpe, first=False)
    bpe.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", *control)])
    _start_with(bpe, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _tekken() -> PreTrainedTokenizerFast:
    """Return Mistral's tekken, a byte-level BPE, with the first 30,000 of its 130,072 ranks, closed under merges."""
    content = json.loads(data_file("tekken_240911.json").read_bytes())
    letters = bytes_to_unicode()
    pieces = [
        "".join(letters[byte] for byte in base64.b64decode(entry["token_bytes"]))
        for entry in content["vocab"]
    ]
    special = _pieces("mistral_instruct_tokenizer_240323.model.v3")[2]
    vocabulary = {piece: key for key, piece in enumerate(["<unk>", *special, *pieces[:30_000]])}
    bpe = Tokenizer(models.BPE(vocabulary, generate_merges(vocabulary, skip_tokens=special)))
    split = pre_tokenizers.Split(Regex(content["config"]["pattern"]), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<unk>", *special])
    _start_with(bpe, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _bytes(
    pattern: str | None, special: list[str], *, start: str | None, end: str, nfc: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a family's pattern; special tokens follow the vocabulary."""
    bpe = Tokenizer(models.BPE())
    if nfc:
        bpe.normalizer = normalizers.NFC()
    split = pattern and pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if split else byte_level
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXT, trainer)
    bpe.add_special_tokens(special)
    if start:
        _start_with(bpe, start)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=start, eos_token=end)


def _qwen() -> PreTrainedTokenizerFast:
    """Return a tokenizer like Qwen's: no start token, NFC, and an added token that is not special."""
    tokenizer = _bytes(
        QWEN,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        start=None,
        end="<|im_end|>",
        nfc=True,
    )
    tokenizer.add_tokens(
        [AddedToken("<tool_call>", special=False), AddedToken("<|end|>", special=False)]
    )
    return tokenizer


def _llama_3() -> PreTrainedTokenizerFast:
    """Return a tokenizer with LLaMA-3's special tokens; the end of a text is not the end of a turn."""
    ends = ["<|end_of_text|>", "<|eot_id|>"]
    heads = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    return _bytes(LLAMA_3, [*heads, *ends], start=heads[0], end=ends[0])


def _neox() -> PreTrainedTokenizerFast:
    """Return a tokenizer like GPT-NeoX's: one special token, none before a text, and runs of spaces as tokens."""
    tokenizer = _bytes(GPT_2, ["<|endoftext|>"], start=None, end="<|endoftext|>")
    tokenizer.add_tokens([AddedToken(" " * size, normalized=True) for size in range(24, 1, -1)])
    return tokenizer


def _unigram() -> PreTrainedTokenizerFast:
    """Return a tokenizer with SentencePiece's unigram model; the text of a special token is one of its pieces."""
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(LOW_LINE, prepend_scheme="always", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.UnigramTrainer(
        vocab_size=420, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    unigram.train_from_iterator(TEXT, trainer)
    content = json.loads(unigram.to_str())
    content["model"]["byte_fallback"] = True
    content["added_tokens"] = content["added_tokens"][:3]
    unigram = Tokenizer.from_str(json.dumps(content))
    _low_lines(unigram, first=True)
    _start_with(unigram, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama": lambda: _llama("tokenizer.model.v1", legacy=False),
    "llama legacy": lambda: _llama("tokenizer.model.v1", legacy=True),
    "mistral v3": lambda: _llama("mistral_instruct_tokenizer_240323.model.v3", legacy=True),
    "tekken": _tekken,
    "phi-3": _phi_3,
    "gemma": _gemma,
    "llama-3": _llama_3,
    "qwen": _qwen,
    "neox": _neox,
    "unigram": _unigram,
}


@cache
def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer `name` with the special tokens of all templates, as assembling a model adds them."""
    tokenizer = TOKENIZERS[name]()
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    existing = {token.content for token in added}
    needed = {token for template in TEMPLATES.values() for token in template.tokens}
    missing = [IMAGE_PLACEHOLDER, *sorted(needed - existing)]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": missing}, replace_extra_special_tokens=False
    )
    return tokenizer
