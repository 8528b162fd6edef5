"""Conversion of a request's messages to the conversation for the model.

A system message is put before the user's first text, as each template has a system text of its own that the model was
trained with. Consecutive messages of one role form one turn. Images stay where the client puts them; several images
before all text are labeled with letters, as in the training data and the other chats.
"""

from collections.abc import Sequence

from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import UsageError
from caldera.server.api.errors import bad_request
from caldera.server.api.schemas import (
    ChatRequest,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    UserMessage,
)

Parts = list[str | ImageRef]


def to_conversation(request: ChatRequest, max_images: int) -> tuple[Conversation, list[str]]:
    """Return the conversation, whose images are named by their index, and the images' URLs.

    Raises:
        ApiError: The messages form no conversation that the assistant could answer, or contain too many images.
    """
    system: list[str] = []
    turns: list[tuple[str, Parts]] = []
    urls: list[str] = []
    for index, message in enumerate(request.messages):
        parts = _parts(message.content, urls)
        _check_order(message, parts, turns, f"messages[{index}]")
        if isinstance(message, SystemMessage):
            system.extend(str(part) for part in parts)
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].extend(["\n", *parts])
        else:
            turns.append((message.role, parts))
    if not turns or turns[-1][0] != "user":
        field = f"messages[{len(request.messages) - 1}].role"
        raise bad_request(f"{field}: the last message must be the user's", field)
    if len(urls) > max_images:
        raise bad_request(
            f"At most {max_images} image(s) may be provided in one prompt.", "messages"
        )
    if system:
        turns[0][1][:] = _prepend_system(system, turns[0][1])
    try:
        return Conversation("request", tuple(_to_turn(*turn) for turn in turns)), urls
    except UsageError as error:
        raise bad_request(f"messages: {error}", "messages") from None


def _check_order(message: Message, parts: Parts, turns: Sequence[object], field: str) -> None:
    """Raise if a message is empty, or if its role cannot follow `turns`."""
    if not any(isinstance(part, ImageRef) or part.strip() for part in parts):
        raise bad_request(f"{field}.content: must not be empty", f"{field}.content")
    field = f"{field}.role"
    if isinstance(message, SystemMessage) and turns:
        raise bad_request(f"{field}: a {message.role} message must precede all others", field)
    if not turns and not isinstance(message, SystemMessage | UserMessage):
        raise bad_request(f"{field}: the first message must be the user's", field)


def _parts(content: str | Sequence[TextPart | ImagePart], urls: list[str]) -> Parts:
    """Return text and image references; the images' URLs are appended to `urls`."""
    if isinstance(content, str):
        return [content]
    parts: Parts = []
    for part in content:
        if isinstance(part, TextPart):
            follows_text = parts and isinstance(parts[-1], str)
            parts.extend(["\n", part.text] if follows_text else [part.text])
        else:
            parts.append(ImageRef(str(len(urls))))
            urls.append(part.image_url.url)
    return parts


def _prepend_system(system: Sequence[str], parts: Parts) -> Parts:
    """Insert the system messages before the first text, after any images that precede it."""
    first = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    separator = ["\n"] if first < len(parts) else []
    return [*parts[:first], "\n".join(system), *separator, *parts[first:]]


def _to_turn(role: str, parts: Parts) -> Turn:
    """Return a turn; several images before all text are labeled with letters."""
    images = [part for part in parts if isinstance(part, ImageRef)]
    if role == "user" and len(images) > 1 and parts[: len(images)] == images:
        parts = [*label_images(images), *parts[len(images) :]]
    return Turn(
        "user" if role == "user" else "assistant", tuple(part for part in parts if part != "")
    )
