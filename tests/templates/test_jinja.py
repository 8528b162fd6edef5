"""What transformers' `apply_chat_template` and tokenizer give is what caldera gives, for every template."""

from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import LlavaProcessor

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.templates.encoding import IMAGE_SLOT_ID, encode
from caldera.templates.jinja import chat_template
from caldera.templates.template import TEMPLATES, Template, find_template
from caldera.templates.tokenization import start_ids
from tests.real_tokenizers import TOKENIZERS, make_tokenizer

ONE, OTHER = ImageRef("a"), ImageRef("b")

QUESTIONS: dict[str, tuple[str | ImageRef, ...]] = {
    "image, words": (ONE, "what?"),
    "words, image": ("what? ", ONE),
    "image within": ("look: ", ONE, " what's that?"),
    "words": (" what? ",),
    "image": (ONE,),
    "image, line end": (ONE, "\n"),
    "two with names": ("Picture A: ", ONE, "\n", "Picture B: ", OTHER, "\n", "which?"),
    "two behind": ("which? ", ONE, OTHER),
}


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return a conversation as transformers takes it: parts where there are images, a string where there are none."""
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
    """Return what a template takes: three turns, the last one open, or a caption."""
    turns = (Turn("user", parts), Turn("assistant", ("a cat",)), Turn("user", ("where?",)))
    return Conversation("c", turns[:2] if template.caption_only else turns)


def is_the_same_in_a_string(template: Template, kind: str) -> bool:
    """Tell whether a string can say what the template says.

    The ids of LLaVA's legacy variants come out of a string only with a legacy tokenizer; Unigram may take the last
    letter before an answer together with its first; GPT-2's pattern takes the second line end before an answer with it.
    """
    if template.isolated:
        return kind == "llama legacy"
    return kind != "unigram" and (template.name, kind) != ("llama_3", "neox")


COMPARED = [
    (name, kind)
    for name in TEMPLATES
    for kind in TOKENIZERS
    if is_the_same_in_a_string(find_template(name), kind)
]


@pytest.mark.parametrize(("name", "kind"), COMPARED)
def test_transformers_gives_the_same_ids(name: str, kind: str) -> None:
    """Wherever images stand in a turn, with every kind of tokenizer."""
    template, tokenizer = find_template(name), make_tokenizer(kind)
    jinja = chat_template(template, starts=bool(start_ids(tokenizer)))
    slot = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
    for parts in QUESTIONS.values():
        if template.caption_only and ONE not in parts:
            continue
        said = conversation_for(template, parts)
        text = tokenizer.apply_chat_template(messages(said), chat_template=jinja, tokenize=False)
        ours = encode(template.render(said), tokenizer)
        assert [slot if token == IMAGE_SLOT_ID else token for token in ours.ids] == tokenizer(
            text
        ).input_ids


def test_most_pairs_were_compared() -> None:
    """What a string cannot say is the exception."""
    assert {name for name, _ in COMPARED} == {*TEMPLATES}
    assert {kind for _, kind in COMPARED} == {*TOKENIZERS} - {"unigram"}
    assert len(COMPARED) > 110


@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "gemma"])
def test_a_model_folder_brings_its_own(tmp_path: Path, assistant: LlavaBundle, name: str) -> None:
    """The processor in the folder renders as the card's template does."""
    card = assistant.card.model_copy(update={"template": name})
    save_model_folder(
        tmp_path / "m", LlavaBundle(assistant.model, assistant.tokenizer, assistant.processor, card)
    )
    said: Any = messages(conversation_for(find_template(name), (ONE, "what?")))
    jinja = chat_template(find_template(name), starts=True)
    processor = LlavaProcessor.from_pretrained(tmp_path / "m")
    expected = assistant.tokenizer.apply_chat_template(said, chat_template=jinja, tokenize=False)
    assert processor.apply_chat_template(said) == expected
    assert IMAGE_PLACEHOLDER in str(expected)


def test_a_system_turn_is_refused() -> None:
    """A template says its own; another's is not taken for an answer."""
    jinja = chat_template(find_template("qwen"), starts=False)
    with pytest.raises(TemplateError, match="turns of user and assistant only"):
        make_tokenizer("qwen").apply_chat_template(
            [{"role": "system", "content": "obey"}], chat_template=jinja, tokenize=False
        )
