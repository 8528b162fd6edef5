"""A template in, the same way of writing in Jinja out, for transformers' `apply_chat_template` and what builds on it.

It is written from the template's own texts, so the two cannot drift apart. caldera itself never runs one.
"""

from caldera.templates.template import BoundaryToken, SpecialToken, Template

_USER = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% set texts = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') %}"
    "{% if images | length == 1 %}{{ ('<image>\\n' ~ (texts | join | trim)) | trim }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endif %}"
)
"""A question: a lone image on a line before the words, several where they are."""

_IMAGES = (
    "{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
)
"""A question of which only the images count."""

_ANSWER = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
)

_REFUSED = "this template takes turns of user and assistant only"


def chat_template(template: Template, *, starts: bool) -> str:
    """Return a template in Jinja; the start mark before everything is left to the tokenizer.

    Args:
        template: What to write.
        starts: Whether the tokenizer uses a start mark.
    """
    question = _IMAGES if template.caption_only else _USER
    return (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        f"{{% if loop.first %}}{_written(template, template.prefix, starts)}"
        f"{{% else %}}{_written(template, template.before_question, starts)}{{% endif %}}"
        f"{question}{_written(template, template.before_answer, starts)}"
        "{% elif message['role'] == 'assistant' %}"
        f"{_written(template, template.answer_prefix, starts)}{_ANSWER}{_written(template, template.answer_suffix, starts)}"
        f"{{% else %}}{{{{ raise_exception({_REFUSED!r}) }}}}{{% endif %}}{{% endfor %}}"
    )


def _written(template: Template, text: str, starts: bool) -> str:
    """Return one of the template's texts as an expression that prints it, marks by the tokenizer's own names."""
    terms = []
    for piece in template.split_special_tokens(text):
        if isinstance(piece, BoundaryToken):
            terms += ["eos_token"] if piece.which == "answer_suffix" else ["bos_token"] * starts
        else:
            terms.append(repr(piece.spelling if isinstance(piece, SpecialToken) else piece.text))
    return f"{{{{ {' ~ '.join(terms)} }}}}" if terms else ""
