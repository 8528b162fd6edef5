"""A model's own chat template is recognized by its text, and never run."""

import pytest
from jinja2 import Environment

from caldera.templates.detection import detect_template
from caldera.templates.jinja import chat_template
from caldera.templates.jinja_subset import UnreadableTemplateError, render
from caldera.templates.registry import TEMPLATES

RENDERED = [
    name
    for name, template in TEMPLATES.items()
    if not template.caption_only
    and (template.segmentation == "supervised" or name == "llama_2_original")
]
"""Templates with a text of their own."""

SPEAKER = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# images first #}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{% for part in message.content | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The text of llava-hf's LLaVA-1.5: Vicuna's format without its system text."""

CHATML = (
    "{{ bos_token }}{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template for content as text, as language models have it."""


@pytest.mark.parametrize("name", RENDERED)
def test_every_template_is_recognized_by_its_own_jinja(name: str) -> None:
    """What caldera writes into a folder leads back to the template that it wrote."""
    assert detect_template(chat_template(TEMPLATES[name], starts=True), "<s>", "</s>").name == name


def test_a_template_for_text_is_recognized() -> None:
    """Content may be text or parts, and the start token may be written by the template."""
    assert detect_template(CHATML, "<s>", "</s>").name == "qwen"
    assert detect_template(CHATML.replace("assistant.<", "bot.<"), "<s>", "</s>").name is None


@pytest.mark.parametrize("name", ["vicuna_v1_original", "v0_original", "qwen_original"])
def test_a_variant_with_the_same_text_is_recognized_as_the_first(name: str) -> None:
    """The text does not tell how it is tokenized."""
    source = chat_template(TEMPLATES[name], starts=True)
    assert detect_template(source, "<s>", "</s>").name == name.removesuffix("_original")


ONEVISION = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The text of llava-hf's LLaVA-OneVision, without the system text of its training."""


def test_llava_onevision_is_recognized() -> None:
    """Both forms, the hub's and the conversion script's, lead to the template that the model was trained with."""
    converted = (
        ONEVISION.replace("] + ' '", "] + '\n'")
        .replace("'<image>'", "'<image>\n'")
        .replace("'\n' + content", "content")
        .replace("'<|im_end|>'", "'<|im_end|>\n'")
    )
    for source in (ONEVISION, converted):
        assert detect_template(source, "", "<|im_end|>").name == "qwen_original"
    assert detect_template(ONEVISION.replace(" + ' '", ""), "", "<|im_end|>").name is None


def test_a_similar_template_is_a_candidate_only() -> None:
    """Another system text or end token is another template; the message can still name the nearest."""
    detected = detect_template(SPEAKER, "<s>", "</s>")
    assert detected.name is None
    assert detected.candidates == ("vicuna_v1", "llava_v1")
    other = chat_template(TEMPLATES["gemma"], starts=True).replace("<end_of_turn>", "<turn_end>")
    assert detect_template(other, "<s>", "</s>").name is None


PAYLOADS = {
    "{{ cycler.__init__.__globals__.os.system('touch never') }}": "uses 'system'",
    "{{ ''.__class__.__mro__ }}": "reads '__class__'",
    "{{ messages.append('x') }}": "uses 'append'",
    "{{ '' | attr('upper') }}": "uses 'attr'",
    "{{ '{0.__class__}'.format(messages) }}": "uses 'format'",
    "{{ '%99999999d' % 1 }}": "fails with ValueError",
    "{{ 'a' * 999999999 }}": r"uses '\*'",
    "{{ 9 ** 9 ** 9 }}": r"uses '\*\*'",
    "{{ 'a' | center(999999999) }}": "uses 'center'",
    "{% for i in range(999999999) %}{% endfor %}": "calls 'range'",
    "{% set x = 'aa' %}" + "{% set x = x ~ x %}" * 99: "text without end",
    "{% set x = [messages, messages] %}": "builds a list",
    "{% for a in messages %}" * 30 + "{% endfor %}" * 30: "does not end",
    "{% include '/etc/passwd' %}": "uses Include",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "uses Macro",
    "{{ raise_exception('no') }}": "calls 'raise_exception'",
    "{{ " + "-" * 9999 + "1 }}": "RecursionError",
    "{% if": "syntax error",
    " " * 60_000: "has 60,000 characters",
}
"""Templates that are more than text, and why each is rejected."""


@pytest.mark.parametrize("source", PAYLOADS)
def test_a_program_is_not_run(source: str) -> None:
    """Nothing is looked up in Python, no text or loop grows without bound, and the reason is one short line (E4)."""
    messages = [{"role": "user", "content": "a"}] * 3
    with pytest.raises(UnreadableTemplateError, match=PAYLOADS[source]) as caught:
        render(source, {"messages": messages})
    assert len(str(caught.value)) < 99


def test_the_subset_is_jinjas() -> None:
    """Conditions, loops, filters, slices and namespaces give what Jinja itself gives."""
    source = (
        "{% set ns = namespace(found=false) %}{% set extra = 'x' if messages | length > 1 else 'y' %}{{ extra }}"
        "{%- for m in messages[1:] -%}\n  {{ loop.index0 % 2 }}{{ m.role | upper }}{{ m['content'].strip() | trim }}"
        "{% if m.role in ['user', 'tool'] and not loop.last %}{% set ns.found = true %}{% elif m.x is defined %}!"
        "{% else %}{{ -1 + loop.index - 1 }}{% endif %}{% endfor %}{{ ns.found }}{{ missing }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages[-1].role | first }}"
    )
    messages = [{"role": role, "content": f" {role} "} for role in ("a", "user", "b", "user")]
    expected = Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    assert render(source, {"messages": messages}) == expected.render(messages=messages)
