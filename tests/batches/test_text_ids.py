"""Texts at their places: the slow tokenizer's ids for legacy variants, and no special token out of words."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizers import LOW_LINE, make_tokenizer, sentencepiece
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from caldera.batches.labels import SLOT, encode
from caldera.batches.templates import HUMAN_SYSTEM, VICUNA_SYSTEM, VISION_SYSTEM, find_template
from caldera.batches.text_ids import start_ids, text_ids
from caldera.conversation import IMAGE_MARK, Conversation, Picture, Turn

BOS, EOS = 1, 2

words = st.sampled_from(
    ["a dog", "USER:", " ASSISTANT: no", "is it?", "line\n", "\n", " ", "  two", "12 345", "it's", "é", "🐕", "שלום", "##", "<|im_end|>"]
) | st.text(st.characters(codec="utf-8", exclude_characters=f"{LOW_LINE}<"), max_size=6)  # fmt: skip
said = st.lists(words, min_size=1, max_size=4).map("".join).filter(lambda text: bool(text.strip()))


def slow_ids(prompt: str) -> list[int]:
    """Encode a prompt as LLaVA-1.5's code did, with a slow legacy tokenizer (spec 1.5).

    The prompt is cut at `<image>`, each piece is tokenised with a start mark, which only the first one keeps. The slow
    tokenizer cuts a piece at its special tokens and has SentencePiece itself encode each text between them.
    """
    slow = sentencepiece("tokenizer.model.v1")
    ids = [BOS]
    for number, piece in enumerate(prompt.split(IMAGE_MARK)):
        ids += [SLOT] * (number > 0)
        for at, sentence in enumerate(piece.split("</s>")):
            ids += [EOS] * (at > 0)
            for where, text in enumerate(sentence.split("<s>")):
                ids += [BOS] * (where > 0) + (slow.encode(text) if text else [])
    return ids


def prompt_of(name: str, rounds: list[tuple[bool, str, str]]) -> str:
    """Write a conversation as LLaVA's conversation.py does: one string."""
    asked = [f"{IMAGE_MARK}\n{text.strip()}" if shown else text for shown, text, _ in rounds]
    answers = [answer for *_, answer in rounds]
    pairs = list(zip(asked, answers, strict=True))
    match name:
        case "plain":
            return f"{IMAGE_MARK}{answers[0]}\n"
        case "vicuna_v1" | "llava_v1":
            system = VICUNA_SYSTEM if name == "vicuna_v1" else HUMAN_SYSTEM
            return f"{system} " + "".join(f"USER: {q} ASSISTANT: {a}</s>" for q, a in pairs)
        case "v0":
            body = "".join(f"Human: {q}###Assistant: {a}###" for q, a in pairs)
            return f"{HUMAN_SYSTEM}###{body}"
    written = "<s>".join(f"[INST] {q} [/INST] {a} </s>" for q, a in pairs)
    return written.replace("[INST] ", f"[INST] <<SYS>>\n{VISION_SYSTEM}\n<</SYS>>\n\n", 1)


@pytest.mark.parametrize("kind", ["llama", "llama legacy", "phi-3"])
@settings(max_examples=60)
@given(rounds=st.lists(st.tuples(st.booleans(), said, said), min_size=1, max_size=3))
def test_legacy_variants_give_the_slow_tokenizers_ids(
    kind: str, rounds: list[tuple[bool, str, str]]
) -> None:
    """Whichever fast tokenizer is used, of the old kind or the new, the ids are those that LLaVA-1.5 was trained on."""
    tokenizer = make_tokenizer("llama" if kind == "phi-3" else kind)
    for name in ("plain", "v0", "vicuna_v1", "llava_v1", "llava_llama_2"):
        used = [(True, *rounds[0][1:])] if name == "plain" else rounds
        turns: list[Turn] = []
        for shown, question, answer in used:
            picture = (Picture("a.png"),) * shown
            turns += [Turn("user", (*picture, question)), Turn("assistant", (answer,))]
        spans = find_template(f"{name}_legacy").render(Conversation("c", tuple(turns)))
        assert list(encode(spans, tokenizer).ids) == slow_ids(prompt_of(name, used)), name


def test_the_variants_differ_where_the_spec_says() -> None:
    """Behind an end mark and behind a picture, and nowhere else (spec 1.5 and 2.3)."""
    tokenizer = make_tokenizer("llama")
    turns = (
        Turn("user", (Picture("a.png"), "what?")),
        Turn("assistant", ("a dog",)),
        Turn("user", ("where?",)),
    )
    conversation = Conversation("c", turns)
    new, old = (
        tokenizer.convert_ids_to_tokens(
            [0 if token == SLOT else token for token in encode(spans, tokenizer).ids]
        )
        for spans in (
            find_template(name).render(conversation) for name in ("vicuna_v1", "vicuna_v1_legacy")
        )
    )
    assert [after for before, after in pairwise(new) if before in ("<unk>", "</s>")] == [
        "<0x0A>", "USER",
    ]  # fmt: skip
    assert "".join(old).replace(f"<unk>{LOW_LINE}<0x0A>", "<unk><0x0A>").replace(
        f"</s>{LOW_LINE}USER", "</s>USER"
    ) == "".join(new)
    assert old.index(f"{LOW_LINE}US") == old.index("</s>") + 1
