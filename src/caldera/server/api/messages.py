"""Conversion of a request's messages to the conversation for the model; `chat.messages` has the rules."""

from collections.abc import Sequence

from caldera.chat.messages import Parts, join_messages
from caldera.conversation import Conversation, ImageRef
from caldera.errors import UsageError
from caldera.server.api.errors import bad_request
from caldera.server.api.schemas import (
    AnswerPart,
    AssistantMessage,
    ChatRequest,
    ImagePart,
    TextPart,
    UserMessage,
)


def to_conversation(
    request: ChatRequest, max_images: int, *, labeled: bool = True
) -> tuple[Conversation, list[str]]:
    """Return the conversation, whose images are named by their index, and the images' URLs.

    Raises:
        ApiError: The messages form no conversation that the assistant could answer, or contain too many images.
    """
    urls: list[str] = []
    messages: list[tuple[str, Parts]] = []
    for index, message in enumerate(request.messages):
        parts = _parts(message.content, urls)
        if isinstance(message, UserMessage) and not _has_content(parts):
            field = f"messages[{index}].content"
            raise bad_request(f"{field}: must not be empty", field)
        if isinstance(message, AssistantMessage) and not _has_content(parts) and message.refusal:
            parts = [message.refusal]
        messages.append((message.role, parts))
    if isinstance(request.messages[-1], AssistantMessage):
        field = f"messages[{len(request.messages) - 1}].role"
        raise bad_request(
            f"{field}: the last message must be the user's; answers are not continued", field
        )
    if len(urls) > max_images:
        raise bad_request(
            f"At most {max_images} image(s) may be provided in one prompt.", "messages"
        )
    try:
        return join_messages(messages, labeled=labeled), urls
    except UsageError as error:
        raise bad_request(f"messages: {error}", "messages") from None


def _has_content(parts: Parts) -> bool:
    return any(isinstance(part, ImageRef) or part.strip() for part in parts)


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
