"""All rules, first-person-viewer wording.

A reply may not name what it was made from (captions, boxes, coordinates), speak of the task or of itself, carry marks
of the request, or answer that nothing is known: LLaVA's rules allow only questions with a definite answer
(arXiv 2304.08485, table 13). Judged in English and Chinese.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import IMAGE_PLACEHOLDER
from caldera.instructions.dialogues import Dialogue, Exchange, Kind
from caldera.instructions.llm_teacher.completeness import (
    CopiedExampleCheck,
    check_complete,
    check_not_copied,
    check_repetition,
    check_uses_several_images,
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


def check_perspective(text: str, captions: str) -> None:
    """Check that a question or an answer speaks as one who sees.

    Args:
        text: The question or the answer.
        captions: Of the images; a word that they use themselves is no leak.

    Raises:
        ReplyRefusal: It names its source, gives coordinates, declines, carries marks, speaks of the task, or knows
            nothing.
    """
    text = text.replace("\u2019", "'")
    sources: list[str] = _MENTIONS_SOURCE.findall(text)
    if leak := next((name for name in sources if name.lower() not in captions.lower()), ""):
        raise RejectedReply(
            "source",
            f"it says {leak!r}",
            feedback=f"You said {leak!r}. Write it all again as one who looks at the image, and do not mention "
            "captions, sentences, descriptions or boxes.",
        )
    if found := _COORDINATES.search(text):
        raise RejectedReply(
            "coordinates",
            f"it says {found[0]!r}",
            feedback="You gave coordinates. Write it all again and say in plain words where things are.",
        )
    if found := _REFUSALS.search(text):
        raise RejectedReply("declines", f"it says {found[0]!r}")
    if found := _PROMPT_MARKUP.search(text):
        raise RejectedReply("marks", f"it says {found[0].strip()!r}")
    if found := _MENTIONS_TASK.search(text):
        raise RejectedReply(
            "task",
            f"it says {found[0]!r}",
            feedback=f"You said {found[0]!r}. Write it all again and speak of the image alone.",
        )
    if found := _NO_INFORMATION.search(text):
        raise RejectedReply(
            "nothing definite",
            f"it says {found[0]!r}",
            feedback=f"You said {found[0]!r}. Write it all again, and ask only what has a definite answer.",
        )


def parse_checked_reply(kind: Kind, reply: Reply, ask: Callable[[], str]) -> list[Exchange]:
    """Read a reply that ended as it should.

    Raises:
        ReplyRefusal: It was cut off or filtered, is empty, breaks the form, or says the mark of an image.
    """
    if reply.finish == "length":
        raise RejectedReply("cut off", "the reply reached the longest that was allowed")
    if reply.finish == "content_filter":
        raise RejectedReply("content filter")
    exchanges = parse_reply(kind, reply.text, ask)
    if any(IMAGE_PLACEHOLDER in text for text in all_texts(exchanges)):
        raise RejectedReply("image mark", f"it says {IMAGE_PLACEHOLDER}")
    try:
        reply.text.encode()
    except UnicodeEncodeError:
        raise RejectedReply("half a character", "a lone surrogate") from None
    return exchanges


def all_texts(exchanges: Sequence[Exchange]) -> list[str]:
    """List every question and answer."""
    return [text for each in exchanges for text in (each.question, each.answer)]


class ReplyChecker:
    """Judges exchanges by every rule, in one order: form of speech, wholeness, truth."""

    def __init__(self, annotations: AnnotationSet, prompts: Mapping[Kind, TeacherPrompt]) -> None:
        """Take what is known of the images, and what the teacher was shown as examples."""
        self._categories = annotations.categories
        self._examples = {
            kind: CopiedExampleCheck(
                prompt.system, [text for pair in prompt.examples for text in pair]
            )
            for kind, prompt in prompts.items()
        }

    def __call__(self, dialogue: Dialogue, reply: Reply) -> None:
        """Judge a reply; the question of a description is drawn later.

        Raises:
            ReplyRefusal: It breaks a rule.
        """
        exchanges = parse_checked_reply(dialogue.kind, reply, lambda: "?")
        captions = "\n".join(text for image in dialogue.images for text in image.captions)
        for each in exchanges:
            for text in all_texts([each]):
                check_perspective(text, captions)
            check_complete(dialogue.kind, each.answer)
        self._examples[dialogue.kind].check(all_texts(exchanges), captions)
        check_repetition(exchanges)
        if dialogue.kind == "detail":
            check_not_copied(exchanges[0].answer, captions)
        if dialogue.kind == "context":
            check_uses_several_images(exchanges)
        check_grounding(exchanges, dialogue.images, self._categories)
