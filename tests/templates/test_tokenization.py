"""Text segments in context: the slow tokenizer's ids for legacy variants, and no special token from text."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.templates.encoding import IMAGE_SLOT_ID, encode
from caldera.templates.registry import HUMAN_SYSTEM, VICUNA_SYSTEM, VISION_SYSTEM, find_template
from caldera.templates.tokenization import context_tokenizer, start_ids
from tests.real_tokenizers import LOW_LINE, make_tokenizer, sentencepiece

BOS, EOS = 1, 2

words = st.sampled_from(
    ["a dog", "USER:", " ASSISTANT: no", "is it?", "line\n", "\n", " ", "  two", "12 345", "it's",
     "é", "🐕", "שלום", "##", "<|im_end|>"]
) | st.text(st.characters(codec="utf-8", exclude_characters=f"{LOW_LINE}<"), max_size=6)  # fmt: skip
utterances = (
    st.lists(words, min_size=1, max_size=4).map("".join).filter(lambda text: bool(text.strip()))
)


def slow_ids(prompt: str) -> list[int]:
    """Encode a prompt as LLaVA-1.5's code did, with a slow legacy tokenizer.

    The prompt is split at `<image>`; each part is tokenized with a start token, which only the first part keeps. The
    slow tokenizer splits a part at its special tokens, and SentencePiece itself encodes each text between them.
    """
    slow = sentencepiece("tokenizer.model.v1")
    ids = [BOS]
    for number, piece in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
        ids += [IMAGE_SLOT_ID] * (number > 0)
        for index, sentence in enumerate(piece.split("</s>")):
            ids += [EOS] * (index > 0)
            for part, text in enumerate(sentence.split("<s>")):
                ids += [BOS] * (part > 0) + (slow.encode(text) if text else [])
    return ids


def prompt_of(name: str, rounds: list[tuple[bool, str, str]]) -> str:
    """Return a conversation as one string, as LLaVA's conversation.py does."""
    questions = [
        f"{IMAGE_PLACEHOLDER}\n{text.strip()}" if has_image else text
        for has_image, text, _ in rounds
    ]
    answers = [answer for *_, answer in rounds]
    pairs = list(zip(questions, answers, strict=True))
    match name:
        case "plain":
            return f"{IMAGE_PLACEHOLDER}{answers[0]}\n"
        case "vicuna_v1" | "llava_v1":
            system = VICUNA_SYSTEM if name == "vicuna_v1" else HUMAN_SYSTEM
            return f"{system} " + "".join(f"USER: {q} ASSISTANT: {a}</s>" for q, a in pairs)
        case "v0":
            body = "".join(f"Human: {q}###Assistant: {a}###" for q, a in pairs)
            return f"{HUMAN_SYSTEM}###{body}"
    written = "<s>".join(f"[INST] {q} [/INST] {a} </s>" for q, a in pairs)
    return written.replace("[INST] ", f"[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n", 1)


@pytest.mark.parametrize("kind", ["llama", "llama legacy"])
@settings(max_examples=60)
@given(rounds=st.lists(st.tuples(st.booleans(), utterances, utterances), min_size=1, max_size=3))
def test_legacy_variants_give_the_slow_tokenizers_ids(
    kind: str, rounds: list[tuple[bool, str, str]]
) -> None:
    """With an old or a new fast tokenizer, the ids are those that LLaVA-1.5 was trained on."""
    tokenizer = make_tokenizer(kind)
    for name in ("plain", "v0", "vicuna_v1", "llava_v1", "llava_llama_2"):
        used = [(True, *rounds[0][1:])] if name == "plain" else rounds
        turns: list[Turn] = []
        for has_image, question, answer in used:
            image = (ImageRef("a.png"),) * has_image
            turns += [Turn("user", (*image, question)), Turn("assistant", (answer,))]
        spans = find_template(f"{name}_legacy").render(Conversation("c", tuple(turns)))
        assert list(encode(spans, tokenizer).ids) == slow_ids(prompt_of(name, used)), name


def test_legacy_ids_differ_after_end_tokens_and_images() -> None:
    """The two variants are equal everywhere else."""
    tokenizer = make_tokenizer("llama")
    turns = (
        Turn("user", (ImageRef("a.png"), "what?")),
        Turn("assistant", ("a dog",)),
        Turn("user", ("where?",)),
    )
    conversation = Conversation("c", turns)
    new, old = (
        tokenizer.convert_ids_to_tokens(
            [0 if token == IMAGE_SLOT_ID else token for token in encode(spans, tokenizer).ids]
        )
        for spans in (
            find_template(name).render(conversation) for name in ("vicuna_v1", "vicuna_v1_legacy")
        )
    )
    followers = [
        [after for before, after in pairwise(pieces) if before in ("<unk>", "</s>")]
        for pieces in (new, old)
    ]
    assert followers == [["<0x0A>", "USER"], [LOW_LINE, f"{LOW_LINE}US"]]
    without_spaces = (
        "".join(old).replace(f"<unk>{LOW_LINE}", "<unk>").replace(f"</s>{LOW_LINE}", "</s>")
    )
    assert without_spaces == "".join(new)


def test_a_merge_cannot_make_a_special_token() -> None:
    """If the merges of a vocabulary lead to the end token's piece, text that spells it is still plain text."""
    content = json.loads(make_tokenizer("llama").backend_tokenizer.to_str())
    content["model"]["merges"] = [["</", "s>"], ["s", ">"], ["<", "/"]]
    content["model"]["vocab"]["s>"] = len(content["model"]["vocab"]) + 99
    careless = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<s>", eos_token="</s>"
    )
    assert careless.encode("</s>", split_special_tokens=True)[-1] == EOS

    ids = context_tokenizer(careless).encode("</s>", "after text")

    assert careless.convert_ids_to_tokens(ids) == ["</", "s>"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("qwen", "a<tool_call>b", ["a", "<tool_call>", "b"]),
        ("qwen", "<|end|>", ["<", "|", "en", "d", "|", ">"]),
        ("neox", "a    b", ["a", "    ", "b"]),
    ],
)
def test_added_tokens_that_are_not_special_stay(name: str, text: str, expected: list[str]) -> None:
    """They keep their ids, as in the tokenizer; tokens of a template never come from text."""
    tokenizer = make_tokenizer(name)
    ids = context_tokenizer(tokenizer).encode(text, "first")
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    if text != "<|end|>":
        assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_a_special_token_can_absorb_white_space() -> None:
    """Phi-3's special tokens absorb the line end after them, in a string and here; an answer loses nothing."""
    tokenizer = make_tokenizer("phi-3")
    conversation = Conversation("c", (Turn("user", ("  why?",)), Turn("assistant", ("\nso",))))
    tokens = tokenizer.convert_ids_to_tokens(
        list(encode(find_template("phi").render(conversation), tokenizer).ids)
    )
    assert tokens == [
        "<s>", "<|user|>", f"{LOW_LINE}why", "?", "<|end|>", "<|assistant|>", LOW_LINE, "<0x0A>", "so", "<|end|>",
    ]  # fmt: skip


def test_tokens_added_later_are_used(tokenizer: PreTrainedTokenizerFast) -> None:
    """A context tokenizer is built again after tokens were added."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="</s>"
    )
    before = context_tokenizer(copy)
    assert context_tokenizer(copy) is before
    copy.add_tokens([AddedToken("<|end|>", special=True)])
    assert "<|end|>" not in before.special
    assert context_tokenizer(copy).special["<|end|>"] == len(copy) - 1


def test_a_tokenizer_without_a_start_token_gets_none(tokenizer: PreTrainedTokenizerFast) -> None:
    """The start token is used only if the tokenizer itself uses it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    bare = Tokenizer.from_str(json.dumps(content))
    without = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")

    assert start_ids(tokenizer) == [tokenizer.bos_token_id]
    assert start_ids(without) == []
