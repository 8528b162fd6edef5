"""A caption in, the words that caption metrics count out: close to what Stanford's PTB tokenizer makes of it.

COCO's evaluation (pycocoevalcap) runs that tokenizer, which needs Java, and then drops punctuation. The rules here are
an approximation: lower case; hyphenated words, abbreviations and numbers whole; "n't", "'s" and their like as words of
their own; "cannot" as two; punctuation dropped. docs/evaluation.md says how close they come.
"""

import re

_TWO_WORDS = {"cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na"}
"""Words that are written as one and counted as two."""

_CLITIC = r"n't(?!\w)|'(?:s|re|ve|ll|d|m)(?!\w)"
_FUSED = re.compile(rf"(?<=\w)({_CLITIC})|\b({'|'.join(_TWO_WORDS)})\b")
_WORD = re.compile(
    rf"{_CLITIC}"
    r"|\d+(?:[.,:]\d+)+"  # 1,000 and 3:30
    r"|(?:[a-z]\.){2,}"  # u.s.
    r"|(?:[od]')?\w+(?:[-&/]\w+)*"  # o'clock, t-shirt, red/white
    r"|[$%#&+]"
)


def ptb_tokenize(caption: str) -> list[str]:
    """Split a caption into words in lower case, without punctuation."""
    apart = _FUSED.sub(lambda found: f" {_TWO_WORDS.get(found[0], found[0])}", caption.lower())
    return _WORD.findall(apart)
