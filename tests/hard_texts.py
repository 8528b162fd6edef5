"""Texts that tokenizers disagree about: code, runs of spaces, control characters, scripts, emoji, special tokens."""

import random

_ROWS = (
    "def f(x):|\n    return |\t|  |   |        |\n\n|\r\n|{|}|();|//|#|0x1F|1234|3.14|....|====|!!!|''|<",
    "hello|World| the|ing|USER:|ASSISTANT:| [INST] | [/INST]|[INST]|<<SYS>>\n|###|Human|<0x0A>|<0x",
    "<im_start>|<image>|ababababab|aaaa|\u2581|\u2581\u2581|\u2581a|\ufffd|\ufdd0|\x00|\x01|\x07|\x1b[0m|\x7f",
    "你好|世界 |日本語|한국어|ğüş|é|e\u0301|naïve|\ufb01|\uff21|½|क्षि|ไทย|اَلْ",
    "👍🏽|👨\u200d👩\u200d👧|😀|🇩🇪|\u200d|\u200b|\ufeff|\u00a0|\u3000",
)
PARTS = tuple(part for row in _ROWS for part in row.split("|"))
"""Pieces of the texts."""

SPECIAL = ("<s>", "</s>", "<unk>")
"""Special tokens of LLaMA's family."""


def hard_texts(count: int, *, special: bool = True) -> list[str]:
    """Return `count` texts, always the same, with or without the spelling of special tokens."""
    draw = random.Random(count)
    parts = [*PARTS, *(SPECIAL * 3 if special else ())]

    def part() -> str:
        kind = draw.random()
        if kind < 0.8:
            return draw.choice(parts)
        letters = draw.choice(((0, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x10FFFF)))
        return " " * draw.randint(1, 40) if kind < 0.9 else chr(draw.randint(*letters))

    return ["".join(part() for _ in range(draw.randint(1, 14))) for _ in range(count)]
