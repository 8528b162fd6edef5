"""A reply in, exchanges out if it is whole, in the form, and true to the annotations; else the rule that it breaks."""

from collections.abc import Callable, Mapping, Sequence

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import IMAGE_MARK
from caldera.instructions.asking.endpoint import Reply
from caldera.instructions.asking.grounding import check_grounding
from caldera.instructions.asking.parsing import ReplyRefusal, parse
from caldera.instructions.asking.prompts import Prompt
from caldera.instructions.asking.voice import check_voice
from caldera.instructions.asking.wholeness import (
    Examples,
    check_circles,
    check_end,
    check_own_words,
    check_several,
)
from caldera.instructions.teacher import Exchange, Kind
from caldera.instructions.writing import Dialogue


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


class Rules:
    """Judges exchanges by every rule, in one order: form of speech, wholeness, truth."""

    def __init__(self, annotations: AnnotationSet, prompts: Mapping[Kind, Prompt]) -> None:
        """Take what is known of the pictures, and what the teacher was shown as examples."""
        self._categories = annotations.categories
        self._examples = {
            kind: Examples(prompt.system, [text for pair in prompt.examples for text in pair])
            for kind, prompt in prompts.items()
        }

    def __call__(self, dialogue: Dialogue, reply: Reply) -> None:
        """Judge a reply; the question of a description is drawn later.

        Raises:
            ReplyRefusal: It breaks a rule.
        """
        exchanges = read_reply(dialogue.kind, reply, lambda: "?")
        captions = "\n".join(text for image in dialogue.images for text in image.captions)
        for each in exchanges:
            for text in texts([each]):
                check_voice(text, captions)
            check_end(dialogue.kind, each.answer)
        self._examples[dialogue.kind].check(texts(exchanges), captions)
        check_circles(exchanges)
        if dialogue.kind == "detail":
            check_own_words(exchanges[0].answer, captions)
        if dialogue.kind == "context":
            check_several(exchanges)
        check_grounding(exchanges, dialogue.images, self._categories)
