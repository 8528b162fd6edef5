"""Texts of a reply in, the first that is not said as one who looks at the image says things.

A reply may not name what it was made from (captions, boxes, coordinates), speak of the task or of itself, carry marks
of the request, or answer that nothing is known: LLaVA's rules allow only questions with a definite answer
(arXiv 2304.08485, table 13). Judged in English and Chinese.
"""

import re

from caldera.instructions.asking.parsing import RejectedReply

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
