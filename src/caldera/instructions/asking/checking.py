"""A reply in, exchanges out if it is whole, in the form, and true to the annotations; else the rule that it breaks."""

from collections.abc import Callable, Sequence

from caldera.conversation import IMAGE_MARK
from caldera.instructions.asking.endpoint import Reply
from caldera.instructions.asking.parsing import ReplyRefusal, parse
from caldera.instructions.teacher import Exchange, Kind


def read_reply(kind: Kind, reply: Reply, ask: Callable[[], str]) -> list[Exchange]:
    """Read a reply that ended as it should.

    Raises:
        ReplyRefusal: It was cut off or filtered, is empty, breaks the form, or says the mark of a picture.
    """
    if reply.finish == "length":
        raise ReplyRefusal("cut off", "the reply reached the longest that was allowed")
    if reply.finish == "content_filter":
        raise ReplyRefusal("content filter")
    exchanges = parse(kind, reply.text, ask)
    if any(IMAGE_MARK in text for text in texts(exchanges)):
        raise ReplyRefusal("image mark", f"it says {IMAGE_MARK}")
    try:
        reply.text.encode()
    except UnicodeEncodeError:
        raise ReplyRefusal("half a character", "a lone surrogate") from None
    return exchanges


def texts(exchanges: Sequence[Exchange]) -> list[str]:
    """List every question and answer."""
    return [text for each in exchanges for text in (each.question, each.answer)]
