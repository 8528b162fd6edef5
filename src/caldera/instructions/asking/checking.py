"""A reply in, exchanges out if it is whole, in the form, and true to the annotations; else the rule that it breaks."""

from collections.abc import Callable, Mapping, Sequence

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import IMAGE_PLACEHOLDER
from caldera.instructions.asking.endpoint import Reply
from caldera.instructions.asking.grounding import check_grounding
from caldera.instructions.asking.parsing import RejectedReply, parse_reply
from caldera.instructions.asking.prompts import TeacherPrompt
from caldera.instructions.asking.voice import check_perspective
from caldera.instructions.asking.wholeness import (
    CopiedExampleCheck,
    check_complete,
    check_not_copied,
    check_repetition,
    check_uses_several_images,
)
from caldera.instructions.teacher import Exchange, Kind
from caldera.instructions.writing import Dialogue


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
