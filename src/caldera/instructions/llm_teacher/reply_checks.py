"""All checks of a reply, and the check that it speaks as someone who sees the image.

A reply may not mention its sources (captions, boxes, coordinates), the task or the model itself, contain markup of
the prompt, or answer that something is unknown: LLaVA's rules allow only questions with a definite answer (arXiv
2304.08485, table 13). English and Chinese are checked.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import IMAGE_PLACEHOLDER, is_valid_utf8
from caldera.instructions.dialogues import Dialogue, Exchange, Kind
from caldera.instructions.llm_teacher.completeness import (
    check_complete,
    check_not_copied,
    check_repetition,
    check_uses_several_images,
    copied_example_check,
)
from caldera.instructions.llm_teacher.grounding import check_grounding
from caldera.instructions.llm_teacher.prompts import TeacherPrompt
from caldera.instructions.llm_teacher.reply_parsing import parse_reply
from caldera.llm_client.client import RejectedReply, Reply

_MENTIONS_SOURCE = re.compile(
    r"\b(?:captions?|bounding box(?:es)?|annotations?|coordinates?)\b"
    r"|\b(?:the|these|your|given|provided|five) (?:sentences?|descriptions)\b"
    r"|\b(?:according to|based on|from|in) (?:the|this|your) (?:provided |given )?(?:text|description)\b"
    r"|说明文字|标注|方框|坐标|根据描述|给出的(?:描述|句子)",
    re.IGNORECASE,
)
_COORDINATES = re.compile(r"\[\s*\d*\.?\d+\s*,|\b[01]?\.\d{2,3}\s*,\s*[01]?\.\d+|\b0\.\d{3}\b")
_REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bI(?:'m| am) sorry\b"
    r"|\b(?:cannot|can't|unable to|not able to) (?:see|view|access|look at) (?:the |this |any |an? )?"
    r"(?:actual )?(?:image|picture|photo)|作为(?:一个)?(?:人工智能|语言模型)|很抱歉|无法查看",
    re.IGNORECASE,
)
_PROMPT_MARKUP = re.compile(
    r"</?picture>|={2,}|^[^\S\n]*=[^\S\n]*$|^[^\S\n]*(?:Question|Answer):", re.MULTILINE
)
_MENTIONS_TASK = re.compile(
    r"\bnot what you asked\b|\byou (?:asked|want(?:ed)? to ask|requested)\b"
    r"|\byou (?:copied|repeated) (?:from|what)\b|\bwrite (?:it all|all of it) again\b"
    r"|\b(?:mentioned|stated|given) in the question\b"
    r"|\b(?:the|of the) answer is\b|\banswer to (?:this|the|your) question\b|\b(?:my|your) (?:reply|response|prompt)\b"
    r"|\bhere (?:is|are) (?:a|an|the|some|my)\b[^.\n]{0,40}\b(?:description|question|answer|dialogue|conversation)s?\b",
    re.IGNORECASE,
)
_NO_INFORMATION = re.compile(
    r"\b(?:is|are|was|were)(?: not|n't| un)(?: |-)?(?:known|specified|mentioned|stated|given|provided|described)\b"
    r"|\b(?:does|do|did)(?: not|n't) (?:specify|mention|state|say|provide|describe)\b"
    r"|\bno (?:other |further |more )?(?:information|mention)\b|\b(?:cannot|can't) be (?:determined|known)\b"
    r"|没有(?:提到|提及|说明)|无法(?:确定|得知)",
    re.IGNORECASE,
)

_SOURCE_FEEDBACK = (
    "You said {match!r}. Write it all again as one who looks at the picture, and do not mention captions, sentences, "
    "descriptions or boxes."
)
_PATTERNS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "coordinates",
        _COORDINATES,
        "You gave coordinates. Write it all again and say in plain words where things are.",
    ),
    ("declines", _REFUSALS, ""),
    ("marks", _PROMPT_MARKUP, ""),
    (
        "task",
        _MENTIONS_TASK,
        "You said {match!r}. Write it all again and speak of the picture alone.",
    ),
    (
        "nothing definite",
        _NO_INFORMATION,
        "You said {match!r}. Write it all again, and ask only what has a definite answer.",
    ),
)
"""Rule, pattern that breaks it, and feedback, which is model input: its wording belongs to the data."""


def check_perspective(text: str, captions: str) -> None:
    """Raise RejectedReply if a text does not speak as someone who sees the image."""
    text = text.replace("\u2019", "'")
    sources: list[str] = _MENTIONS_SOURCE.findall(text)
    for source in sources:
        if source.lower() not in captions.lower():
            feedback = _SOURCE_FEEDBACK.format(match=source)
            raise RejectedReply("source", f"it contains {source!r}", feedback=feedback)
    for rule, pattern, feedback in _PATTERNS:
        if match := pattern.search(text):
            content = match[0].strip() if rule == "marks" else match[0]
            raise RejectedReply(
                rule, f"it contains {content!r}", feedback=feedback.format(match=content)
            )


def parse_checked_reply(
    kind: Kind, reply: Reply, pick_question: Callable[[], str]
) -> list[Exchange]:
    """Parse a reply; reject one that is truncated, filtered, empty or malformed, or contains `<image>`."""
    if reply.finish == "length":
        raise RejectedReply("cut off", "the reply reached the maximum length")
    if reply.finish == "content_filter":
        raise RejectedReply("content filter")
    exchanges = parse_reply(kind, reply.text, pick_question)
    if any(IMAGE_PLACEHOLDER in text for text in all_texts(exchanges)):
        raise RejectedReply("image mark", f"it contains {IMAGE_PLACEHOLDER}")
    if not is_valid_utf8(reply.text):
        raise RejectedReply("half a character", "a lone surrogate")
    return exchanges


def all_texts(exchanges: Sequence[Exchange]) -> list[str]:
    """Return every question and answer."""
    return [text for exchange in exchanges for text in (exchange.question, exchange.answer)]


def reply_checker(
    annotations: AnnotationSet, prompts: Mapping[Kind, TeacherPrompt]
) -> Callable[[Dialogue, Reply], None]:
    """Return a check by all rules in a fixed order: perspective, completeness, grounding."""
    check_examples = {kind: copied_example_check(prompt) for kind, prompt in prompts.items()}

    def check(dialogue: Dialogue, reply: Reply) -> None:
        # The question of a description is sampled later.
        exchanges = parse_checked_reply(dialogue.kind, reply, lambda: "?")
        captions = "\n".join(text for image in dialogue.images for text in image.captions)
        for exchange in exchanges:
            check_perspective(exchange.question, captions)
            check_perspective(exchange.answer, captions)
            check_complete(dialogue.kind, exchange.answer)
        check_examples[dialogue.kind](all_texts(exchanges), captions)
        check_repetition(exchanges)
        if dialogue.kind == "detail":
            check_not_copied(exchanges[0].answer, captions)
        if dialogue.kind == "context":
            check_uses_several_images(exchanges)
        check_grounding(exchanges, dialogue.images, annotations.categories)

    return check
