"""transformers' `apply_chat_template` and tokenizer give the same ids as caldera, for every template."""

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import LlavaProcessor

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IMAGE_SLOT_ID, encode
from caldera.templates.jinja import chat_template, spaces_images
from caldera.templates.registry import TEMPLATES, find_template
from caldera.templates.template import Template
from caldera.templates.tokenization import start_ids
from tests.real_tokenizers import TOKENIZERS, make_tokenizer

FIRST, SECOND = ImageRef("a"), ImageRef("b")

QUESTIONS: dict[str, tuple[str | ImageRef, ...]] = {
    "image, words": (FIRST, "what?"),
    "words, image": ("what? ", FIRST),
    "image within": ("look: ", FIRST, " what's that?"),
    "words": (" what? ",),
    "image": (FIRST,),
    "image, line end": (FIRST, "\n"),
    "two with names": ("Picture A: ", FIRST, "\n", "Picture B: ", SECOND, "\n", "which?"),
    "two behind": ("which? ", FIRST, SECOND),
}


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return a conversation in transformers' form: parts if there are images, else a string."""
    return [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.parts
            ]
            if turn.images
            else turn.text,
        }
        for turn in conversation.turns
    ]


def conversation_for(template: Template, parts: tuple[str | ImageRef, ...]) -> Conversation:
    """Return three turns, the last a question, or one caption if the template takes captions."""
    turns = (Turn("user", parts), Turn("assistant", ("a cat",)), Turn("user", ("where?",)))
    return Conversation("c", turns[:2] if template.caption_only else turns)


def has_the_same_ids_as_a_string(template: Template, kind: str) -> bool:
    """Return whether the tokenizer gives the template's ids for the rendered string.

    The ids of LLaVA's legacy variants, and those of transformers 4.31, come from a string only with a legacy tokenizer;
    those of the original variants also with one that needs no space behind images, or gets it written. Unigram may join
    the last letter before an answer with its first; GPT-2's pattern joins the second line end before an answer with it.
    """
    if template.segmentation == "original" and kind in (
        "llama",
        "tekken",
        "qwen",
        "llama-3",
        "neox",
    ):
        return kind != "llama" or spaces_images(template, make_tokenizer(kind))
    if template.segmentation != "supervised":
        return kind == "llama legacy"
    return kind != "unigram" and (template.name, kind) != ("llama_3", "neox")


COMPARED = [
    (name, kind)
    for name in TEMPLATES
    for kind in TOKENIZERS
    if has_the_same_ids_as_a_string(find_template(name), kind)
]


@pytest.mark.parametrize(("name", "kind"), COMPARED)
def test_transformers_gives_the_same_ids(name: str, kind: str) -> None:
    """For images at any position in a turn, with every kind of tokenizer."""
    template, tokenizer = find_template(name), make_tokenizer(kind)
    jinja = chat_template(
        template,
        starts=bool(start_ids(tokenizer)),
        spaces_images=spaces_images(template, tokenizer),
    )
    slot = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    for parts in QUESTIONS.values():
        if template.caption_only and FIRST not in parts:
            continue
        conversation = conversation_for(template, parts)
        text = tokenizer.apply_chat_template(
            messages(conversation), chat_template=jinja, tokenize=False
        )
        encoded = encode(template.render(conversation), tokenizer)
        assert [slot if token == IMAGE_SLOT_ID else token for token in encoded.ids] == tokenizer(
            text
        ).input_ids


def test_most_pairs_were_compared() -> None:
    """Pairs that differ by design are the exception."""
    assert {name for name, _ in COMPARED} == {*TEMPLATES}
    assert {kind for _, kind in COMPARED} == {*TOKENIZERS} - {"unigram"}
    assert len(COMPARED) > 110


@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "gemma"])
def test_a_model_folder_contains_its_chat_template(
    tmp_path: Path, assistant: LlavaBundle, name: str
) -> None:
    """The processor in the folder renders as the card's template does, with the start token."""
    card = assistant.card.model_copy(update={"template": name})
    save_model_folder(
        tmp_path / "m", LlavaBundle(assistant.model, assistant.tokenizer, assistant.processor, card)
    )
    chat: Any = messages(conversation_for(find_template(name), (FIRST, "what?")))
    jinja = chat_template(find_template(name), starts=True)
    processor = LlavaProcessor.from_pretrained(tmp_path / "m")
    expected = assistant.tokenizer.apply_chat_template(chat, chat_template=jinja, tokenize=False)
    assert processor.apply_chat_template(chat) == f"<s>{expected}"
    assert IMAGE_PLACEHOLDER in str(expected)


def test_a_system_turn_is_rejected() -> None:
    """A template has its own system text; another one is not rendered as an answer."""
    jinja = chat_template(find_template("qwen"), starts=False)
    with pytest.raises(TemplateError, match="turns of user and assistant only"):
        make_tokenizer("qwen").apply_chat_template(
            [{"role": "system", "content": "obey"}], chat_template=jinja, tokenize=False
        )
