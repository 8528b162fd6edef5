"""Templates write, to the letter, what the models they are for were trained with."""

import pytest

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ConversationError, UnknownNameError
from caldera.templates.template import (
    TEMPLATES,
    VICUNA_SYSTEM,
    BoundaryToken,
    ImageSlot,
    SpecialToken,
    TextSpan,
    find_template,
)

HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
USER = HUMAN.replace("human", "user")
VISION = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
MPT = "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."

WRITTEN = {
    "plain": "<s>*[a\n]",
    "v0": f"<s>{HUMAN}###Human: *\nwhat?###Assistant:[ a###]Human: why?###Assistant:[ b###]",
    "vicuna_v1": f"<s>{USER} USER: *\nwhat? ASSISTANT:[ a</s>]USER: why? ASSISTANT:[ b</s>]",
    "llava_v1": f"<s>{HUMAN} USER: *\nwhat? ASSISTANT:[ a</s>]USER: why? ASSISTANT:[ b</s>]",
    "llava_llama_2": f"<s>(INST) <<SYS>>\n{VISION}\n<</SYS>>\n\n*\nwhat? (/INST)[ a </s>]"
    "<s>(INST) why? (/INST)[ b </s>]",
    "llama_2": "<s>(INST) *\nwhat? (/INST)[ a </s>]<s>(INST) why? (/INST)[ b </s>]",
    "mistral_instruct": "<s>(INST) *\nwhat? (/INST)[ a </s>](INST) why? (/INST)[ b </s>]",
    "mpt": f"<s><|im_start|>system\n{MPT}<|im_end|><|im_start|>user\n*\nwhat?<|im_end|><|im_start|>assistant\n"
    "[a<|im_end|>]<|im_start|>user\nwhy?<|im_end|><|im_start|>assistant\n[b<|im_end|>]",
    "chatml_direct": "<s><|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n*\nwhat?<|im_end|>"
    "<|im_start|>assistant\n[a<|im_end|>]<|im_start|>user\nwhy?<|im_end|><|im_start|>assistant\n[b<|im_end|>]",
    "qwen": "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n*\nwhat?<|im_end|>\n"
    "<|im_start|>assistant\n[a<|im_end|>]\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]",
    "llama_3": f"<s><|start_header_id|>system<|end_header_id|>\n\n{VISION}<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n*\nwhat?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[a<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\nwhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "[b<|eot_id|>]",
    "gemma": "<s><start_of_turn>user\n*\nwhat?<end_of_turn>\n<start_of_turn>model\n[a<end_of_turn>]\n"
    "<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n[b<end_of_turn>]",
    "phi": "<s><|user|>\n*\nwhat?<|end|>\n<|assistant|>\n[a<|end|>]\n<|user|>\nwhy?<|end|>\n<|assistant|>\n[b<|end|>]",
}
"""Two rounds: `*` is the image, what is learned stands in brackets, LLaMA-2's own brackets are round ones here."""

TWO_ROUNDS = Conversation(
    "c",
    (
        Turn("user", ("what?\n", ImageRef("a.png"))),
        Turn("assistant", ("a",)),
        Turn("user", ("why?",)),
        Turn("assistant", ("b",)),
    ),
)


def written(name: str, conversation: Conversation) -> str:
    """Render a conversation as one text, what is learned in brackets."""
    said, learned = "", False
    for span in find_template(name).render(conversation):
        match span:
            case ImageSlot():
                text, known = "*", False
            case BoundaryToken(which, known):
                text = "<s>" if which == "start" else "</s>"
            case TextSpan(text, known) | SpecialToken(text, known):
                text = text.replace("[INST]", "(INST)").replace("[/INST]", "(/INST)")
        said += ("[" if known else "]") * (known != learned) + text
        learned = known
    return said + "]" * learned


@pytest.mark.parametrize("name", [name for name in TEMPLATES if not TEMPLATES[name].isolated])
def test_two_rounds_are_written_to_the_letter(name: str) -> None:
    """The image goes to the front of its turn; answers, what leads to them and their ends are learned."""
    turns = TWO_ROUNDS.turns[: 2 if name == "plain" else 4]
    assert written(name, Conversation("c", turns)) == WRITTEN[name]


@pytest.mark.parametrize("name", [name for name in TEMPLATES if TEMPLATES[name].isolated])
def test_a_legacy_variant_writes_the_same_text(name: str) -> None:
    """Only how it is cut into tokens differs."""
    turns = TWO_ROUNDS.turns[: 2 if name == "plain_legacy" else 4]
    assert written(name, Conversation("c", turns)) == WRITTEN[name.removesuffix("_legacy")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_last_question_is_opened_for_the_answer(name: str) -> None:
    """A prompt is the text of the whole conversation up to the answer, and nothing of it is learned."""
    asked = Conversation("c", TWO_ROUNDS.turns[: 1 if name.startswith("plain") else 3])
    whole = WRITTEN[name.removesuffix("_legacy")]
    assert written(name, asked) == whole[: whole.rindex("[")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_entry_states_its_end_and_its_stop(name: str) -> None:
    """An answer ends in a special token, the tokenizer's own end mark, or a text that is also the stop."""
    template = TEMPLATES[name]
    [*_, end] = template.split_special_tokens(template.answer_suffix, learned=True)
    match end:
        case TextSpan(text):
            assert text == template.stop == template.answer_suffix
        case SpecialToken(spelling):
            assert spelling == template.end_token
            assert template.stop is None
        case BoundaryToken(which):
            assert which == "answer_suffix"
            assert template.end_token is template.stop is None
    assert all(token in "".join(_texts(name)) for token in template.tokens)


def _texts(name: str) -> list[str]:
    template = TEMPLATES[name]
    return [
        template.prefix,
        template.before_answer,
        template.answer_prefix,
        template.answer_suffix,
        template.before_question,
    ]


def test_a_image_without_words_stands_alone() -> None:
    """As in the original, which strips a turn once more after moving the image: no line ends behind it."""
    slot = ImageSlot(ImageRef("a.png"))
    for parts in ((ImageRef("a.png"),), (ImageRef("a.png"), "\n"), (" ", ImageRef("a.png"), " ")):
        asked = Conversation("c", (Turn("user", parts),))
        assert [*find_template("vicuna_v1").render(asked)] == [
            BoundaryToken("start"),
            TextSpan(f"{VICUNA_SYSTEM} USER: "),
            slot,
            TextSpan(" ASSISTANT:"),
        ]
        assert [*find_template("plain").render(asked)] == [BoundaryToken("start"), slot]


def test_plain_takes_only_captions() -> None:
    """Dialogues and texts without an image are sent to the other template."""
    without = Conversation("c", (Turn("user", ("what?",)), Turn("assistant", ("a",))))
    for conversation in (TWO_ROUNDS, without):
        with pytest.raises(
            ConversationError, match=r"'plain' takes .* use 'vicuna_v1' for dialogues"
        ):
            list(find_template("plain").render(conversation))


def test_templates_are_found_by_exact_name() -> None:
    """A typo is answered with the nearest name."""
    assert find_template("plain").name == "plain"
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna_v1'"):
        find_template("vicunav1")
