"""Conversion of a request's messages to the conversation for the model.

The turns of a conversation are the user's and the assistant's in alternation, as each template has a system text of its
own that the model was trained with, so:

- System messages at the beginning are put before the user's first text.
- A later system message keeps its place as text of the user: before the text of the user's message that follows it,
  else as the end of the user's turn before it, or as a turn of the user.
- An assistant's message at the beginning follows an empty turn of the user.
- Consecutive messages of one role form one turn.

Images stay where the client puts them; several images before all text are labeled with letters, as in the training data
and the other chats.
"""

from collections.abc import Sequence

from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import UsageError
from caldera.server.api.errors import bad_request
from caldera.server.api.schemas import (
    AnswerPart,
    ChatRequest,
    ImagePart,
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
    later_system: list[str] = []
    turns: list[tuple[str, Parts]] = []
    urls: list[str] = []
    for index, message in enumerate(request.messages):
        parts = _parts(message.content, urls)
        if isinstance(message, SystemMessage):
            texts = [str(part) for part in parts] if _has_content(parts) else []
            (later_system if turns else system).extend(texts)
        elif isinstance(message, UserMessage):
            if not _has_content(parts):
                field = f"messages[{index}].content"
                raise bad_request(f"{field}: must not be empty", field)
            _add_turn(turns, "user", _prepend_system(later_system, parts))
            later_system = []
        else:
            if later_system or not turns:
                _add_turn(turns, "user", _prepend_system(later_system, []))
                later_system = []
            _add_turn(turns, "assistant", parts if any(parts) else [message.refusal or ""])
    if later_system or (system and not turns):
        _add_turn(turns, "user", _prepend_system(later_system, []))
    if not turns or turns[-1][0] != "user":
        field = f"messages[{len(request.messages) - 1}].role"
        raise bad_request(
            f"{field}: the last message must be the user's; answers are not continued", field
        )
    if len(urls) > max_images:
        raise bad_request(
            f"At most {max_images} image(s) may be provided in one prompt.", "messages"
        )
    turns[0][1][:] = _prepend_system(system, turns[0][1])
    try:
        conversation = tuple(_to_turn(*turn) for turn in turns)
        return Conversation("request", conversation, allow_empty_turns=True), urls
    except UsageError as error:
        raise bad_request(f"messages: {error}", "messages") from None


def _has_content(parts: Parts) -> bool:
    return any(isinstance(part, ImageRef) or part.strip() for part in parts)


def _add_turn(turns: list[tuple[str, Parts]], role: str, parts: Parts) -> None:
    """Append a message to the last turn if that has the same role, else as a turn."""
    if not turns or turns[-1][0] != role:
        turns.append((role, parts))
    elif any(parts):
        separator = ["\n"] if any(turns[-1][1]) else []
        turns[-1][1].extend([*separator, *parts])


def _parts(content: str | Sequence[TextPart | AnswerPart | ImagePart], urls: list[str]) -> Parts:
    """Return text and image references; the images' URLs are appended to `urls`."""
    if isinstance(content, str):
        return [content]
    parts: Parts = []
    for part in content:
        if not isinstance(part, ImagePart):
            follows_text = parts and isinstance(parts[-1], str)
            parts.extend(["\n", part.text] if follows_text else [part.text])
        else:
            parts.append(ImageRef(str(len(urls))))
            urls.append(part.image_url.url)
    return parts


def _prepend_system(system: Sequence[str], parts: Parts) -> Parts:
    """Insert system messages before the first text, after any images that precede it."""
    if not system:
        return parts
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
