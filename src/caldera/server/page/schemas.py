"""What a browser sends in, the conversation of one model out, and the same as a file in LLaVA's JSON.

The browser holds the conversation, images among it, and sends all of it with every question: the server keeps
nothing between two of them.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.chat.session import user_turn
from caldera.conversation import Conversation, ImageRef, Turn, to_record
from caldera.errors import ConversationError, UsageError, validation_error_field
from caldera.server.api.errors import bad_request
from caldera.server.media.loader import read_data_url

MAX_TEXT = 1 << 20
"""Characters of one question or answer."""

MAX_TURNS = 1000

_SUFFIXES: Mapping[bytes, str] = {b"\xff\xd8": "jpg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}
"""Of image files, by their first bytes."""


class TurnPayload(BaseModel):
    """A question and what was answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(max_length=MAX_TEXT)
    images: list[Annotated[str, Field(pattern=r"^data:")]] = Field(max_length=100)
    """Data URLs of what was shown with it."""
    answers: list[str] = Field(max_length=2)
    """One for each model; empty where a model has not answered."""


class ConversationPayload(BaseModel):
    """A conversation as the browser holds it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(max_length=64)
    """Drawn by the browser for each question; by it the answer is stopped."""
    turns: list[TurnPayload] = Field(min_length=1, max_length=MAX_TURNS)


@dataclass(frozen=True, slots=True)
class ModelView:
    """A conversation as one model had it."""

    conversation: Conversation
    """Ends with the user; its images are named by their places in `urls`."""
    urls: tuple[str, ...]
    answer: str
    """To the last question; empty if there is none yet."""


def parse_payload(sent: object) -> ConversationPayload:
    """Check what a browser sent.

    Raises:
        ApiError: It is not what the page sends.
    """
    try:
        return ConversationPayload.model_validate(sent)
    except ValidationError as error:
        field = validation_error_field(error) or "the conversation"
        raise bad_request(f"{field} is not what this page sends") from None


def conversation_of(model: int, sent: ConversationPayload) -> ModelView:
    """Return the conversation with one of the models.

    A question that it did not answer is left out, but what was shown with it is shown with the next.

    Raises:
        ApiError: The last question is empty, or shows too many images.
    """
    *earlier, last = sent.turns
    urls: list[str] = []
    shown: list[ImageRef] = []
    turns: list[Turn] = []
    try:
        for turn in earlier:
            shown += _add_images(turn.images, urls)
            if (answer := _answer(model, turn)) and turn.question.strip():
                turns += user_turn(turn.question, shown), Turn("assistant", (answer,))
                shown = []
        shown += _add_images(last.images, urls)
        if not last.question.strip():
            raise bad_request("the question is empty; ask something", code="empty_question")
        conversation = Conversation("chat", (*turns, user_turn(last.question, shown)))
    except (ConversationError, UsageError) as error:
        raise bad_request(str(error)) from None
    return ModelView(conversation, tuple(urls), _answer(model, last))


def download(sent: ConversationPayload, models: int) -> bytes:
    """Return a ZIP file: `conversation.json` in LLaVA's form, one record for each model, and the images beside it.

    Raises:
        ApiError: Nothing was answered yet, or an image or text cannot be written.
    """
    records: list[dict[str, object]] = []
    files: dict[str, bytes] = {}
    for model in range(models):
        heard = conversation_of(model, sent)
        if not heard.answer:
            continue
        contents = [read_data_url(url, len(url)) for url in heard.urls]
        names = [
            f"images/{number}.{_SUFFIXES.get(content[:2], 'image')}"
            for number, content in enumerate(contents, start=1)
        ]
        files.update(zip(names, contents, strict=True))
        turns = [_renamed(turn, names) for turn in heard.conversation.turns]
        whole = Conversation(
            f"chat-{'ab'[model]}" if models > 1 else "chat",
            (*turns, Turn("assistant", (heard.answer,))),
        )
        try:
            records.append(to_record(whole))
        except ConversationError as error:
            raise bad_request(str(error)) from None
    if not records:
        raise bad_request("nothing was answered yet", code="nothing_answered")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("conversation.json", json.dumps(records, ensure_ascii=False, indent=1))
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _add_images(images: list[str], urls: list[str]) -> list[ImageRef]:
    """Give each image the next place in `urls`."""
    first = len(urls)
    urls.extend(images)
    return [ImageRef(str(place)) for place in range(first, len(urls))]


def _answer(model: int, turn: TurnPayload) -> str:
    return turn.answers[model].strip() if model < len(turn.answers) else ""


def _renamed(turn: Turn, names: list[str]) -> Turn:
    """Name a turn's images by their files."""
    parts = (
        ImageRef(names[int(one.path)]) if isinstance(one, ImageRef) else one for one in turn.parts
    )
    return Turn(turn.role, tuple(parts))
