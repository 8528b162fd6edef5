"""A chat template in, one out that llama.cpp's programs can run: they put a mark into the text where an image stands.

llama-cpp-python hands an image over as a part of text, llama.cpp's own programs as a piece of one text; both call it
`<__media__>` or `<__media_...__>`. What is put before a template here makes texts of all messages, with a lone
image's mark on a line before the words, as caldera's templates have it.
"""

_GATHER = (
    "{% set gathered = namespace(messages=[]) %}"
    "{% for message in messages %}"
    "{% set said = namespace(text='') %}"
    "{% if message['content'] is string %}{% set said.text = message['content'] %}"
    "{% else %}{% for part in message['content'] %}{% if 'text' in part %}"
    "{% set said.text = said.text ~ part['text'] %}{% endif %}{% endfor %}{% endif %}"
    "{% set pieces = said.text.split('<__media') %}"
    "{% if pieces | length == 2 and '__>' in pieces[1] %}"
    "{% set after = pieces[1].split('__>') %}"
    "{% set mark = '<__media' ~ after[0] ~ '__>' %}"
    "{% set words = (pieces[0] ~ (after[1:] | join('__>'))) | trim %}"
    "{% set said.text = (mark ~ '\\n' ~ words) | trim %}"
    "{% endif %}"
    "{% set gathered.messages = gathered.messages + [{'role': message['role'], 'content': said.text}] %}"
    "{% endfor %}"
    "{% set messages = gathered.messages %}"
)


def gguf_template(template: str, start: str | None, end: str | None) -> str:
    """Return a chat template for `tokenizer.chat_template`.

    Args:
        template: A Jinja template that writes messages whose content is text as it is.
        start: Spelling of the tokenizer's start mark; llama-cpp-python itself gives none to a template.
        end: Spelling of its end mark.
    """
    marks = {"bos_token": start, "eos_token": end}
    said = [f"{{% set {name} = {mark!r} %}}" for name, mark in marks.items() if mark is not None]
    return "".join((*said, _GATHER, template))
