"""Messages of a request in, the conversation that the model reads and the images that it names out.

Words of a system message stand before the user's first words, as the templates have a system text of their own which
the model was trained with. Messages of one speaker that follow each other are one turn. A turn's images stand where
the client put them; several that stand before all words are named by letters, as in the training data and the other
chats.
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


def to_conversation(request: ChatRequest, most_images: int) -> tuple[Conversation, list[str]]:
    """Return the conversation, with a number for each image, and the images' URLs in that order.

    Raises:
        ApiError: The messages make no conversation that the assistant could answer, or show too many images.
    """
    system: list[str] = []
    turns: list[tuple[str, Parts]] = []
    urls: list[str] = []
    for number, message in enumerate(request.messages):
        where = f"messages[{number}]"
        parts = _parts(message.content, urls)
        _check_order(message, parts, turns, where)
        if isinstance(message, SystemMessage):
            system.extend(str(part) for part in parts)
        elif turns and turns[-1][0] == message.role:
            turns[-1][1].extend(["\n", *parts])
        else:
            turns.append((message.role, parts))
    if not turns or turns[-1][0] != "user":
        last = f"messages[{len(request.messages) - 1}].role"
        raise bad_request(f"{last}: the last message must be the user's", last)
    if len(urls) > most_images:
        raise bad_request(
            f"At most {most_images} image(s) may be provided in one prompt.", "messages"
        )
    if system:
        turns[0][1][:] = _prepend_system(system, turns[0][1])
    try:
        return Conversation("request", tuple(map(_to_turn, turns))), urls
    except UsageError as error:
        raise bad_request(f"messages: {error}", "messages") from None


def _check_order(message: Message, parts: Parts, turns: Sequence[object], where: str) -> None:
    """Refuse a message that says nothing, or that cannot stand behind `turns`.

    Raises:
        ApiError: It is one of the two.
    """
    if not any(isinstance(part, ImageRef) or part.strip() for part in parts):
        raise bad_request(f"{where}.content: is empty; say something", f"{where}.content")
    if isinstance(message, SystemMessage) and turns:
        raise bad_request(
            f"{where}.role: a {message.role} message must stand before all others", f"{where}.role"
        )
    if not turns and not isinstance(message, SystemMessage | UserMessage):
        raise bad_request(f"{where}.role: the user must speak first", f"{where}.role")


def _parts(content: str | Sequence[TextPart | ImagePart], urls: list[str]) -> Parts:
    """Return words and places of images; their URLs are added to `urls`."""
    if isinstance(content, str):
        return [content]
    parts: Parts = []
    for part in content:
        if isinstance(part, TextPart):
            is_behind_words = parts and isinstance(parts[-1], str)
            parts.extend(["\n", part.text] if is_behind_words else [part.text])
        else:
            parts.append(ImageRef(str(len(urls))))
            urls.append(part.image_url.url)
    return parts


def _prepend_system(system: Sequence[str], parts: Parts) -> Parts:
    """Put a system message's words before the first words, behind images that stand before them."""
    at = next((at for at, part in enumerate(parts) if isinstance(part, str)), len(parts))
    return [*parts[:at], "\n".join(system), *(["\n"] if at < len(parts) else []), *parts[at:]]


def _to_turn(said: tuple[str, Parts]) -> Turn:
    """Return a turn; several images before all words are named by letters."""
    role, parts = said
    images = [part for part in parts if isinstance(part, ImageRef)]
    if role == "user" and len(images) > 1 and parts[: len(images)] == images:
        parts = [*label_images(images), *parts[len(images) :]]
    return Turn(
        "user" if role == "user" else "assistant", tuple(part for part in parts if part != "")
    )
