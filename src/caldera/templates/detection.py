"""Detection of the template that a model's own chat template equals: both render the same conversations."""

import difflib
from dataclasses import dataclass
from typing import Any

from caldera.conversation import IMAGE_PLACEHOLDER, Conversation, ImageRef, Turn
from caldera.templates.jinja_subset import UnreadableTemplateError, render
from caldera.templates.registry import TEMPLATES
from caldera.templates.template import (
    BoundaryToken,
    ImageSlot,
    SpecialToken,
    Template,
    TextSpan,
)

_QUESTION = Turn("user", (ImageRef("image"), "\nWhat is it?"))
_REST = (Turn("assistant", ("A red bus.",)), Turn("user", ("Where is it going to?",)))

_PROBES = (
    Conversation("one question", (_QUESTION,)),
    Conversation("two questions", (_QUESTION, *_REST)),
    Conversation("no image", (Turn("user", ("Who are you?",)), *_REST)),
)
"""Conversations that both templates render."""

_ONEVISION = (
    "{{% for turn in messages %}}{{{{ '<|im_start|>' ~ turn.role ~ '{0}' }}}}"
    "{{% for part in turn.content %}}{{% if part.type == 'image' %}}{{{{ '{1}' }}}}{{% endif %}}{{% endfor %}}"
    "{{% for part in turn.content %}}{{% if part.type == 'text' %}}{{{{ '{2}' ~ part.text }}}}{{% endif %}}"
    "{{% endfor %}}{{{{ '{3}' }}}}{{% endfor %}}{{{{ '<|im_start|>assistant\n' }}}}"
)
_OTHER_SOURCES = {
    _ONEVISION.format(" ", "<image>", "\n", "<|im_end|>"): "qwen_original",
    _ONEVISION.format("\n", "<image>\n", "", "<|im_end|>\n"): "qwen_original",
}
"""Chat templates of llava-hf's folders that omit the system text of the training: two of LLaVA-OneVision."""

_MIN_SIMILARITY, _MAX_DISTANCE, _MAX_CANDIDATES = 0.5, 0.1, 3
"""Similarity of a candidate, its distance from the most similar one, and number of candidates."""


@dataclass(frozen=True, slots=True)
class DetectedTemplate:
    """Result of comparing a chat template with every known one."""

    name: str | None
    """The known template that renders the same text."""

    candidates: tuple[str, ...] = ()
    """Known templates that render similar text, the nearest first."""

    reason: str = ""
    """Why none is equal."""


def detect_template(source: str, bos_token: str, eos_token: str) -> DetectedTemplate:
    """Compare a chat template in Jinja with every known one.

    Args:
        source: The template; no code in it is run.
        bos_token: The tokenizer's start token; empty if it has none.
        eos_token: The tokenizer's end token.
    """
    tokens = {"bos_token": bos_token, "eos_token": eos_token}
    names: dict[tuple[str, ...], str] = {}
    for name, template in TEMPLATES.items():
        if not template.caption_only:
            # A variant that renders the same text has other token ids only.
            names.setdefault(tuple(_text(template, probe, **tokens) for probe in _PROBES), name)
    for other, name in _OTHER_SOURCES.items():
        names[tuple(_render(other, probe, tokens) for probe in _PROBES)] = name
    try:
        texts = tuple(_render(source, probe, tokens) for probe in _PROBES)
    except UnreadableTemplateError as error:
        similar = [
            name for name in names.values() if TEMPLATES[name].before_answer.strip() in source
        ]
        return DetectedTemplate(None, tuple(similar[:_MAX_CANDIDATES]), str(error))
    if texts in names:
        return DetectedTemplate(names[texts])
    similarities = {name: _similarity(texts[1], expected[1]) for expected, name in names.items()}
    nearest = sorted(similarities, key=lambda name: -similarities[name])
    limit = max(_MIN_SIMILARITY, similarities[nearest[0]] - _MAX_DISTANCE)
    candidates = [name for name in nearest if similarities[name] >= limit]
    return DetectedTemplate(
        None, tuple(candidates[:_MAX_CANDIDATES]), "it renders other text than every known one"
    )


def _render(source: str, conversation: Conversation, tokens: dict[str, str]) -> str:
    """Render a conversation with a chat template: content in parts, else as text, as the template takes it."""
    variables: dict[str, Any] = {**tokens, "add_generation_prompt": True}
    parts = [{"role": turn.role, "content": _parts(turn)} for turn in conversation.turns]
    try:
        text = render(source, {**variables, "messages": parts})
    except UnreadableTemplateError:
        texts = [
            {"role": turn.role, "content": IMAGE_PLACEHOLDER * len(turn.images) + turn.text}
            for turn in conversation.turns
        ]
        text = render(source, {**variables, "messages": texts})
    start = tokens["bos_token"]
    # A tokenizer that spaces only the first text needs the space written behind a start token.
    return text.removeprefix(start).removeprefix(" ") if start and text.startswith(start) else text


def _parts(turn: Turn) -> list[dict[str, str]]:
    """Return a turn's content as processors of transformers take it."""
    return [
        {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part.strip()}
        for part in turn.parts
    ]


def _text(template: Template, conversation: Conversation, bos_token: str, eos_token: str) -> str:
    """Return a conversation as a known template renders it, without the start token that the tokenizer adds."""
    pieces = []
    for span in template.render(conversation):
        match span:
            case TextSpan(text=text):
                pieces.append(text)
            case SpecialToken(spelling=spelling):
                pieces.append(spelling)
            case BoundaryToken(which=which):
                pieces.append(bos_token if which == "start" else eos_token)
            case ImageSlot():
                pieces.append(IMAGE_PLACEHOLDER)
    return "".join(pieces).removeprefix(bos_token)


def _similarity(text: str, expected: str) -> float:
    """Return the similarity of two renderings: of what follows the first question, then of the system texts."""
    question = "What is it?"
    before, _, after = text.partition(question)
    expected_before, _, expected_after = expected.partition(question)
    system = difflib.SequenceMatcher(None, before, expected_before, autojunk=False).ratio()
    rest = difflib.SequenceMatcher(None, after, expected_after, autojunk=False).ratio()
    return 0.9 * rest + 0.1 * system
