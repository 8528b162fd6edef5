"""Texts at their places: the slow tokenizer's ids for legacy variants, and no special token out of words."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.templates.encoding import IMAGE_SLOT_ID, encode
from caldera.templates.template import HUMAN_SYSTEM, VICUNA_SYSTEM, VISION_SYSTEM, find_template
from caldera.templates.tokenization import context_tokenizer, start_ids
from tests.real_tokenizers import LOW_LINE, make_tokenizer, sentencepiece

BOS, EOS = 1, 2

words = st.sampled_from(
    ["a dog", "USER:", " ASSISTANT: no", "is it?", "line\n", "\n", " ", "  two", "12 345", "it's",
     "é", "🐕", "שלום", "##", "<|im_end|>"]
) | st.text(st.characters(codec="utf-8", exclude_characters=f"{LOW_LINE}<"), max_size=6)  # fmt: skip
said = st.lists(words, min_size=1, max_size=4).map("".join).filter(lambda text: bool(text.strip()))


def slow_ids(prompt: str) -> list[int]:
    """Encode a prompt as LLaVA-1.5's code did, with a slow legacy tokenizer (spec 1.5).

    The prompt is cut at `<image>`, each piece is tokenized with a start mark, which only the first one keeps. The slow
    tokenizer cuts a piece at its special tokens and has SentencePiece itself encode each text between them.
    """
    slow = sentencepiece("tokenizer.model.v1")
    ids = [BOS]
    for number, piece in enumerate(prompt.split(IMAGE_PLACEHOLDER)):
        ids += [IMAGE_SLOT_ID] * (number > 0)
        for at, sentence in enumerate(piece.split("</s>")):
            ids += [EOS] * (at > 0)
            for where, text in enumerate(sentence.split("<s>")):
                ids += [BOS] * (where > 0) + (slow.encode(text) if text else [])
    return ids


def prompt_of(name: str, rounds: list[tuple[bool, str, str]]) -> str:
    """Write a conversation as LLaVA's conversation.py does: one string."""
    asked = [f"{IMAGE_PLACEHOLDER}\n{text.strip()}" if shown else text for shown, text, _ in rounds]
    answers = [answer for *_, answer in rounds]
    pairs = list(zip(asked, answers, strict=True))
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
@given(rounds=st.lists(st.tuples(st.booleans(), said, said), min_size=1, max_size=3))
def test_legacy_variants_give_the_slow_tokenizers_ids(
    kind: str, rounds: list[tuple[bool, str, str]]
) -> None:
    """Whichever fast tokenizer is used, of the old kind or the new, the ids are those that LLaVA-1.5 was trained on."""
    tokenizer = make_tokenizer(kind)
    for name in ("plain", "v0", "vicuna_v1", "llava_v1", "llava_llama_2"):
        used = [(True, *rounds[0][1:])] if name == "plain" else rounds
        turns: list[Turn] = []
        for shown, question, answer in used:
            image = (ImageRef("a.png"),) * shown
            turns += [Turn("user", (*image, question)), Turn("assistant", (answer,))]
        spans = find_template(f"{name}_legacy").render(Conversation("c", tuple(turns)))
        assert list(encode(spans, tokenizer).ids) == slow_ids(prompt_of(name, used)), name


def test_the_variants_differ_where_the_spec_says() -> None:
    """Behind an end mark and behind an image, and nowhere else (spec 1.5 and 2.3)."""
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
    behind = [
        [after for before, after in pairwise(pieces) if before in ("<unk>", "</s>")]
        for pieces in (new, old)
    ]
    assert behind == [["<0x0A>", "USER"], [LOW_LINE, f"{LOW_LINE}US"]]
    told = "".join(old).replace(f"<unk>{LOW_LINE}", "<unk>").replace(f"</s>{LOW_LINE}", "</s>")
    assert told == "".join(new)


def test_a_merge_cannot_make_a_mark() -> None:
    """Where a vocabulary's merges lead to an end mark's own piece, words that spell it are still words."""
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
    """Under their own ids, as in the tokenizer; but the mark of a template is none, whatever the tokenizer calls it."""
    tokenizer = make_tokenizer(name)
    ids = context_tokenizer(tokenizer).encode(text, "first")
    assert tokenizer.convert_ids_to_tokens(ids) == expected
    if text != "<|end|>":
        assert ids == tokenizer.encode(text, add_special_tokens=False)


def test_a_mark_that_swallows_white_space_does() -> None:
    """Phi-3's marks take the line's end behind them with them, in a string and here; an answer loses nothing."""
    tokenizer = make_tokenizer("phi-3")
    asked = Conversation("c", (Turn("user", ("  why?",)), Turn("assistant", ("\nso",))))
    tokens = tokenizer.convert_ids_to_tokens(
        list(encode(find_template("phi").render(asked), tokenizer).ids)
    )
    assert tokens == [
        "<s>", "<|user|>", f"{LOW_LINE}why", "?", "<|end|>", "<|assistant|>", LOW_LINE, "<0x0A>", "so", "<|end|>",
    ]  # fmt: skip


def test_tokens_that_are_added_later_are_known(tokenizer: PreTrainedTokenizerFast) -> None:
    """A tokenizer is read anew when it has grown."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="</s>"
    )
    before = context_tokenizer(made)
    assert context_tokenizer(made) is before
    made.add_tokens([AddedToken("<|end|>", special=True)])
    assert "<|end|>" not in before.special
    assert context_tokenizer(made).special["<|end|>"] == len(made) - 1


def test_a_tokenizer_without_a_start_mark_gets_none(tokenizer: PreTrainedTokenizerFast) -> None:
    """The start mark is used only where the tokenizer itself uses it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    bare = Tokenizer.from_str(json.dumps(content))
    without = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")

    assert start_ids(tokenizer) == [tokenizer.bos_token_id]
    assert start_ids(without) == []
