"""What a browser sends in, the conversation of one model out, and the same as a file in LLaVA's JSON.

The browser holds the conversation, pictures among it, and sends all of it with every question: the server keeps
nothing between two of them.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from caldera.chat.api.errors import refused
from caldera.chat.data_urls import read_data_url
from caldera.chat.session import asked
from caldera.conversation import Conversation, Picture, Turn, to_record
from caldera.errors import RecordError, UsageError

MAX_TEXT = 1 << 20
"""Characters of one question or answer."""

MAX_TURNS = 1000

_ENDINGS: Mapping[bytes, str] = {b"\xff\xd8": "jpg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}
"""Of picture files, by their first bytes."""


class SentTurn(BaseModel):
    """A question and what was answered."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str = Field(max_length=MAX_TEXT)
    pictures: list[Annotated[str, Field(pattern=r"^data:")]] = Field(max_length=100)
    """Data URLs of what was shown with it."""
    answers: list[str] = Field(max_length=2)
    """One for each model; empty where a model has not answered."""


class Sent(BaseModel):
    """A conversation as the browser holds it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(max_length=64)
    """Drawn by the browser for each question; by it the answer is stopped."""
    turns: list[SentTurn] = Field(min_length=1, max_length=MAX_TURNS)


@dataclass(frozen=True, slots=True)
class Heard:
    """A conversation as one model had it."""

    conversation: Conversation
    """Ends with the user; its pictures are named by their places in `urls`."""
    urls: tuple[str, ...]
    answer: str
    """To the last question; empty if there is none yet."""


def read_sent(sent: object) -> Sent:
    """Check what a browser sent.

    Raises:
        ApiError: It is not what the page sends.
    """
    try:
        return Sent.model_validate(sent)
    except ValidationError as error:
        field = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise refused(f"{field or 'the conversation'} is not what this page sends") from None


def heard_by(model: int, sent: Sent) -> Heard:
    """Return the conversation with one of the models.

    A question that it did not answer is left out, but what was shown with it is shown with the next.

    Raises:
        ApiError: The last question is empty, or shows too many pictures.
    """
    *earlier, last = sent.turns
    urls: list[str] = []
    shown: list[Picture] = []
    turns: list[Turn] = []
    try:
        for turn in earlier:
            shown += _placed(turn.pictures, urls)
            if (answer := _answer(model, turn)) and turn.question.strip():
                turns += asked(turn.question, shown), Turn("assistant", (answer,))
                shown = []
        shown += _placed(last.pictures, urls)
        if not last.question.strip():
            raise refused("the question is empty; ask something", code="empty_question")
        conversation = Conversation("chat", (*turns, asked(last.question, shown)))
    except (RecordError, UsageError) as error:
        raise refused(str(error)) from None
    return Heard(conversation, tuple(urls), _answer(model, last))


def download(sent: Sent, models: int) -> bytes:
    """Return a ZIP file: `conversation.json` in LLaVA's form, one record for each model, and the pictures beside it.

    Raises:
        ApiError: Nothing was answered yet, or a picture or text cannot be written.
    """
    records: list[dict[str, object]] = []
    files: dict[str, bytes] = {}
    for model in range(models):
        heard = heard_by(model, sent)
        if not heard.answer:
            continue
        contents = [read_data_url(url, len(url)) for url in heard.urls]
        names = [
            f"pictures/{number}.{_ENDINGS.get(content[:2], 'picture')}"
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
        except RecordError as error:
            raise refused(str(error)) from None
    if not records:
        raise refused("nothing was answered yet", code="nothing_answered")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("conversation.json", json.dumps(records, ensure_ascii=False, indent=1))
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _placed(pictures: list[str], urls: list[str]) -> list[Picture]:
    """Give each picture the next place in `urls`."""
    first = len(urls)
    urls.extend(pictures)
    return [Picture(str(place)) for place in range(first, len(urls))]


def _answer(model: int, turn: SentTurn) -> str:
    return turn.answers[model].strip() if model < len(turn.answers) else ""


def _renamed(turn: Turn, names: list[str]) -> Turn:
    """Name a turn's pictures by their files."""
    parts = (
        Picture(names[int(one.path)]) if isinstance(one, Picture) else one for one in turn.parts
    )
    return Turn(turn.speaker, tuple(parts))
