"""Real tokenizers and the kinds that released models have, by name, for the tests of templates.

`mistral-common` brings real vocabularies: SentencePiece models of Mistral's versions 1 and 3, and a tekken. Nothing of
it is imported; its files are read. The kinds that no package brings are trained here, with their own special tokens.
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
from caldera.templates.template import TEMPLATES

LOW_LINE = "\u2581"
"""What SentencePiece writes for a space; it cannot tell the two apart."""

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: What is in the image?\n ASSISTANT: A dog, a cat and 2 birds.\n\n",
    "system You are a helpful assistant. user Human: where is it? ###Assistant: It's on the left!  model [INST]",
] * 3
"""What the trained ones are trained on."""

GPT_2 = None
"""The pattern that tokenizers' ByteLevel has of its own."""

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def data_file(name: str) -> Path:
    """Find a file that mistral-common brings."""
    spec = find_spec("mistral_common")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


@cache
def sentencepiece(name: str) -> SentencePieceProcessor:
    """Load a SentencePiece model, the slow tokenizer itself."""
    return SentencePieceProcessor(str(data_file(name)))


@cache
def _pieces(name: str) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """Read vocabulary, merges and control tokens out of a SentencePiece model."""
    slow = sentencepiece(name)
    vocabulary = {slow.id_to_piece(key): key for key in range(len(slow))}
    scores = {piece: slow.get_score(key) for piece, key in vocabulary.items()}
    control = [slow.id_to_piece(key) for key in range(len(slow)) if slow.is_control(key)]
    return vocabulary, generate_merges(vocabulary, scores, skip_tokens=control), control


def _low_lines(bpe: Tokenizer, first: bool) -> None:
    """Decode as LLaMA's tokenizers do."""
    steps: list[Any] = [decoders.Replace(LOW_LINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*steps, decoders.Strip(" ", left=1)] if first else steps)


def _start_with(bpe: Tokenizer, start: str) -> None:
    """Put a start mark before a text."""
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))]
    )


def _llama(name: str, *, legacy: bool, end: str = "</s>") -> PreTrainedTokenizerFast:
    """Turn a SentencePiece model into a fast tokenizer, the way transformers does for LLaMA, legacy or not."""
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
    """LLaMA's legacy kind, with role marks that take the white space behind them with them, as Phi-3's do."""
    made = _llama("tokenizer.model.v1", legacy=True)
    marks = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>")
    made.add_tokens(
        [AddedToken(mark, rstrip=True, normalized=False, special=True) for mark in marks]
    )
    made.eos_token = "<|endoftext|>"
    return made


def _gemma() -> PreTrainedTokenizerFast:
    """Low lines for spaces and none before a text, as Gemma's."""
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
    """Mistral's tekken, a byte-level BPE: the first 30,000 of its 130,072 ranks, which close every merge among them."""
    content = json.loads(data_file("tekken_240911.json").read_bytes())
    letters = bytes_to_unicode()
    spelt = [
        "".join(letters[byte] for byte in base64.b64decode(one["token_bytes"]))
        for one in content["vocab"]
    ]
    special = _pieces("mistral_instruct_tokenizer_240323.model.v3")[2]
    vocabulary = {piece: key for key, piece in enumerate(["<unk>", *special, *spelt[:30_000]])}
    bpe = Tokenizer(models.BPE(vocabulary, generate_merges(vocabulary, skip_tokens=special)))
    cut = pre_tokenizers.Split(Regex(content["config"]["pattern"]), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, whole])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<unk>", *special])
    _start_with(bpe, "<s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _bytes(
    pattern: str | None, special: list[str], *, start: str | None, end: str, nfc: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a family's pattern; its special tokens lie behind the vocabulary."""
    bpe = Tokenizer(models.BPE())
    if nfc:
        bpe.normalizer = normalizers.NFC()
    cut = pattern and pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([cut, whole]) if cut else whole
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(TEXT, trainer)
    bpe.add_special_tokens(special)
    if start:
        _start_with(bpe, start)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=start, eos_token=end)


def _qwen() -> PreTrainedTokenizerFast:
    """No start mark, composed characters, and a mark that is an added token, but no special one."""
    made = _bytes(
        QWEN,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        start=None,
        end="<|im_end|>",
        nfc=True,
    )
    made.add_tokens(
        [AddedToken("<tool_call>", special=False), AddedToken("<|end|>", special=False)]
    )
    return made


def _llama_3() -> PreTrainedTokenizerFast:
    """LLaMA-3's special tokens; the end of a text is not the end of a turn."""
    ends = ["<|end_of_text|>", "<|eot_id|>"]
    heads = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
    return _bytes(LLAMA_3, [*heads, *ends], start=heads[0], end=ends[0])


def _neox() -> PreTrainedTokenizerFast:
    """GPT-NeoX's: one special token for start and end, which it does not put itself, and runs of spaces as tokens."""
    made = _bytes(GPT_2, ["<|endoftext|>"], start=None, end="<|endoftext|>")
    made.add_tokens([AddedToken(" " * size, normalized=True) for size in range(24, 1, -1)])
    return made


def _unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other model, in which the most likely pieces win; a mark's own spelling is one of them."""
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
    """Make the tokenizer called `name`, with every special token of every template, as joining towers gives them."""
    made = TOKENIZERS[name]()
    known = {token.content for token in made.backend_tokenizer.get_added_tokens_decoder().values()}
    needed = {token for template in TEMPLATES.values() for token in template.tokens}
    missing = [IMAGE_PLACEHOLDER, *sorted(needed - known)]
    made.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return made
