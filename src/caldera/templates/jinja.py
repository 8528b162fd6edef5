"""Write a template in Jinja, for transformers' `apply_chat_template` and the programs that use it.

It is generated from the template's own texts, so the two cannot drift apart. caldera itself never runs it.
"""

from transformers import PreTrainedTokenizerFast

from caldera.templates.template import BoundaryToken, SpecialToken, Template, TextSpan
from caldera.templates.tokenization import context_tokenizer

_USER = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') %}"
    "{% if images | length == 1 %}{{ ('<image>\\n' ~ (texts | join | trim)) | trim }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endif %}"
)
"""A question: a single image on a line before the text, several images in place."""

_IMAGES = (
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
)
"""A question of which only the images are used."""

_ANSWER = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
)

_SPACES = "replace('<image>', '<image> ') | replace('<image> <image>', '<image><image>')"
"""Filters that put a space behind an image, but none between two."""

_UNKNOWN_ROLE = "this template takes turns of user and assistant only"


def chat_template(template: Template, *, starts: bool, spaces_images: bool = False) -> str:
    """Return a template in Jinja, without the initial start token, which the tokenizer adds.

    Args:
        template: The template to write.
        starts: Whether the tokenizer uses a start token.
        spaces_images: Whether to write the space behind images that the template's segmentation puts there.
    """
    question, answer = _IMAGES if template.caption_only else _USER, _ANSWER
    if spaces_images:
        question = f"{{% filter {_SPACES} %}}{question}{{% endfilter %}}"
    if template.strips_turns:
        question, answer = (
            f"{{% filter trim %}}{text}{{% endfilter %}}" for text in (question, answer)
        )
    prefix, before_question, before_answer, answer_prefix, answer_suffix = (
        _expression(template, text, starts)
        for text in (
            template.prefix,
            template.before_question,
            template.before_answer,
            template.answer_prefix,
            template.answer_suffix,
        )
    )
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{% if loop.first %}}{prefix}{{% else %}}{before_question}{{% endif %}}"
        f"{question}{before_answer}"
        "{% elif message['role'] == 'assistant' %}"
        f"{answer_prefix}{answer}{answer_suffix}"
        f"{{% else %}}{{{{ raise_exception({_UNKNOWN_ROLE!r}) }}}}{{% endif %}}{{% endfor %}}"
    )


def spaces_images(template: Template, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a tokenizer gives a template's ids only for a string with a space behind images.

    A text that starts behind an image gets SentencePiece's space in the variants of LLaVA's own code, and in a string
    only if the tokenizer puts one behind every special token.
    """
    [follower, *_] = [*template.split(template.before_answer), BoundaryToken("end")]
    return (
        template.segmentation in ("original", "original_4_31")
        and isinstance(follower, TextSpan)
        and context_tokenizer(tokenizer).spaces_first_only
    )


def _expression(template: Template, text: str, starts: bool) -> str:
    """Return a Jinja expression that prints one of the template's texts, with the tokenizer's own boundary tokens."""
    terms = []
    for piece in template.split(text):
        if isinstance(piece, BoundaryToken):
            terms += ["eos_token"] if piece.which == "end" else ["bos_token"] * starts
        else:
            terms.append(repr(piece.spelling if isinstance(piece, SpecialToken) else piece.text))
    return f"{{{{ {' ~ '.join(terms)} }}}}" if terms else ""
