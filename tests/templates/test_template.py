"""Templates render exactly the text that their models were trained with."""

import re

import pytest

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ConversationError, UnknownNameError
from caldera.templates.registry import TEMPLATES, VICUNA_SYSTEM, find_template
from caldera.templates.template import (
    BoundaryToken,
    ImageSlot,
    SpecialToken,
    Template,
    TextSpan,
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
"""Two rounds: `*` is the image, supervised text is in brackets, LLaMA-2's own brackets are round here."""

LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
VARIANTS = {name: re.sub("_(legacy|original(_4_31)?)$", "", name) for name in TEMPLATES}
"""The template with the same text, for each template."""

WRITTEN |= {name: WRITTEN[same] for name, same in VARIANTS.items()} | {
    "llama_2_original": WRITTEN["llava_llama_2"].replace(VISION, LLAMA_2)
}

TRAINED = {
    "v0_original": f"<s>{HUMAN}\n\n[###] Human: *\nwhat?\n[### Assistant: a\n###] Human: why?\n"
    "[### Assistant: b\n### ]",
    "qwen_original": "<s>[<|im_start|>]system\nYou are a helpful assistant.[<|im_end|>]\n[<|im_start|>]user\n*\nwhat?"
    "[<|im_end|>]\n[<|im_start|>assistant\na<|im_end|>\n<|im_start|>]user\nwhy?[<|im_end|>]\n"
    "[<|im_start|>assistant\nb<|im_end|>\n]",
    "llama_3_original": f"[<s><|start_header_id|>]system[<|end_header_id|>]\n\n{VISION}[<|eot_id|><|start_header_id|>]"
    "user[<|end_header_id|>]\n\n*\nwhat?[<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
    "<|start_header_id|>]user[<|end_header_id|>]\n\nwhy?[<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb"
    "<|eot_id|>]",
    "gemma_original": "<s><start_of_turn>user\n*\nwhat?<end_of_turn>\n<start_of_turn>model\n[a<end_of_turn>\n]"
    "<start_of_turn>user\nwhy?<end_of_turn>\n<start_of_turn>model\n[b<end_of_turn>\n]",
}
"""Two rounds where LLaVA's code trains another text, or learns more, than it asks."""

TWO_ROUNDS = Conversation(
    "c",
    (
        Turn("user", ("what?\n", ImageRef("a.png"))),
        Turn("assistant", ("a",)),
        Turn("user", ("why?",)),
        Turn("assistant", ("b",)),
    ),
)


def written(template: Template, conversation: Conversation) -> str:
    """Render a conversation as one text, with supervised text in brackets."""
    result, in_brackets = "", False
    for span in template.render(conversation):
        match span:
            case ImageSlot():
                text, supervised = "*", False
            case BoundaryToken(which, supervised):
                text = "<s>" if which == "start" else "</s>"
            case TextSpan(text, supervised) | SpecialToken(text, supervised):
                text = text.replace("[INST]", "(INST)").replace("[/INST]", "(/INST)")
        result += ("[" if supervised else "]") * (supervised != in_brackets) + text
        in_brackets = supervised
    return result + "]" * in_brackets


@pytest.mark.parametrize("name", TEMPLATES)
def test_two_rounds_are_rendered_exactly(name: str) -> None:
    """The image moves to the start of its turn; answers with their prefix and suffix are supervised.

    A variant renders the text of the template that it is named after.
    """
    template = find_template(name)
    conversation = Conversation("c", TWO_ROUNDS.turns[: 2 if template.caption_only else 4])
    assert written(template, conversation) == WRITTEN[name]
    assert written(template.for_training, conversation) == TRAINED.get(name, WRITTEN[name])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_ends_before_the_answer(name: str) -> None:
    """A prompt is the text of the full conversation up to the answer, without supervised text."""
    template = find_template(name)
    prompt = Conversation("c", TWO_ROUNDS.turns[: 1 if template.caption_only else 3])
    full_text = WRITTEN[name]
    assert written(template, prompt) == full_text[: full_text.rindex("[")]


def test_llava_next_moves_an_image_only_if_it_is_not_first() -> None:
    """A turn that starts with its only image keeps the white space behind it; LLaMA-3's template strips turns."""
    image = ImageRef("a.png")
    turns: list[tuple[str | ImageRef, ...]] = [
        (image, "\n\n a "),
        ("a ", image),
        (" a", image, image, "b "),
        (image,),
        ("  a ",),
    ]
    expected = {
        "qwen_original": ["*\n\n a ", "*\na", " a**b ", "*", "  a "],
        "llama_3_original": ["*\n\n a", "*\na", "a**b", "*", "a"],
        "vicuna_v1_original": ["*\na", "*\na", " a**b ", "*", "  a "],
    }
    for name, questions in expected.items():
        template = find_template(name).for_training
        before, after = written(template, Conversation("c", (Turn("user", ("%",)),))).split("%")
        for parts, question in zip(turns, questions, strict=True):
            prompt = written(template, Conversation("c", (Turn("user", parts),)))
            assert prompt == f"{before}{question}{after}"
    answers = (Turn("user", ("a",)), Turn("assistant", (" b\n",)))
    assert "[b<" in written(find_template("llama_3_original"), Conversation("c", answers))


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_has_an_end_or_a_stop(name: str) -> None:
    """An answer ends with a special token, the tokenizer's own end token, or a text that is also the stop."""
    template = TEMPLATES[name]
    [*_, end] = template.split(template.answer_suffix, supervised=True)
    match end:
        case TextSpan(text):
            assert text == template.stop == template.answer_suffix
        case SpecialToken(spelling):
            assert spelling == template.end_token
            assert template.stop is None
        case BoundaryToken(which):
            assert which == "end"
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


def test_an_image_without_text_has_no_line_end() -> None:
    """As in the original, which strips a turn again after it moved the image."""
    slot = ImageSlot(ImageRef("a.png"))
    for parts in ((ImageRef("a.png"),), (ImageRef("a.png"), "\n"), (" ", ImageRef("a.png"), " ")):
        prompt = Conversation("c", (Turn("user", parts),))
        assert [*find_template("vicuna_v1").render(prompt)] == [
            BoundaryToken("start"),
            TextSpan(f"{VICUNA_SYSTEM} USER: "),
            slot,
            TextSpan(" ASSISTANT:"),
        ]
        assert [*find_template("plain").render(prompt)] == [BoundaryToken("start"), slot]


def test_plain_takes_only_captions() -> None:
    """The error for dialogues and texts without an image names the template to use."""
    without = Conversation("c", (Turn("user", ("what?",)), Turn("assistant", ("a",))))
    for conversation in (TWO_ROUNDS, without):
        with pytest.raises(
            ConversationError, match=r"'plain' takes .*; use 'vicuna_v1' for dialogues"
        ):
            list(find_template("plain").render(conversation))


def test_templates_have_exact_names() -> None:
    """The error for a typo names the nearest template."""
    assert find_template("plain").name == "plain"
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna_v1'"):
        find_template("vicunav1")
