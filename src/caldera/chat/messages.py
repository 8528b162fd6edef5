"""Messages of OpenAI's API and of transformers as a conversation and its images.

The turns of a conversation are the user's and the assistant's in alternation, as each template has a system text of its
own that the model was trained with, so:

- System messages at the beginning are put before the user's first text.
- A later system message keeps its place as text of the user: before the text of the user's message that follows it,
  else as the end of the user's turn before it, or as a turn of the user.
- An assistant's message at the beginning follows an empty turn of the user; an empty one is an empty turn.
- Consecutive messages of one role form one turn.

Images stay where they are; several images before all text are labeled with letters, as in the training data.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from caldera.conversation import Conversation, ImageRef, Turn, label_images
from caldera.errors import ConversationError, UsageError, did_you_mean, shorten_value

Parts = list[str | ImageRef]

_SYSTEM_ROLES = ("system", "developer")
_ROLES = ("user", "assistant", *_SYSTEM_ROLES)
_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "image", "input_image")
_IMAGE_KEYS = ("image_url", "image", "url", "path", "base64", "data", "source")
"""Keys that hold the image of a part, in OpenAI's, transformers' and Anthropic's messages."""


def read_messages(
    messages: Sequence[Mapping[str, Any]], images: Sequence[object] = (), *, labeled: bool = True
) -> tuple[Conversation, list[Any]]:
    """Return messages as a conversation that ends with a question, and its images in order.

    Args:
        messages: Each with `role` and `content`: a text, or parts such as {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "dog.jpg"}} or {"type": "image", "path": "dog.jpg"}.
        images: Images of the parts without one, {"type": "image"}, in order; or, if no part is for an image, images
            before the only question.
        labeled: Whether several images before a question have letters.

    Raises:
        UsageError: Messages have another form, or images and parts do not match.
    """
    spare = list(images)
    part_images: list[Any] = []
    turns = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UsageError(
                f"message {number} is {shorten_value(message)}; write {{'role': 'user', 'content': ...}}"
            )
        if message["role"] not in _ROLES:
            raise UsageError(
                f"message {number} has the role {shorten_value(message['role'])}; "
                f"{did_you_mean(str(message['role']), _ROLES)}"
            )
        turns.append((message["role"], _parts(message["content"], number, part_images, spare)))
    if spare and not part_images and [role for role, _ in turns].count("user") == 1:
        question = next(parts for role, parts in turns if role == "user")
        question[:0] = [*map(ImageRef, map(str, range(len(spare))))]
        part_images, spare = spare, []
    if spare:
        raise UsageError(
            f"{len(spare)} of {len(images)} images have no part in the messages; add {{'type': 'image'}} for each"
        )
    return join_messages(turns, labeled=labeled), part_images


def _parts(content: object, number: int, part_images: list[Any], spare: list[Any]) -> Parts:
    """Return texts and image references of a content; its images are appended to `part_images`."""
    if content is None or isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list | tuple):
        raise UsageError(
            f"message {number} has the content {shorten_value(content)}; give a text or a list of parts"
        )
    parts: Parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str) or kind in _TEXT_TYPES:
            text = part if isinstance(part, str) else part.get("text", "")
            if not isinstance(text, str):
                raise UsageError(f"message {number} has the text {shorten_value(text)}; give a str")
            follows_text = parts and isinstance(parts[-1], str)
            parts.extend(["\n", text] if follows_text else [text])
        elif kind in _IMAGE_TYPES:
            parts.append(ImageRef(str(len(part_images))))
            part_images.append(_image(part, number, spare))
        else:
            raise UsageError(
                f"message {number} has the part {shorten_value(part)}; its type must be one of "
                f"{', '.join(_TEXT_TYPES + _IMAGE_TYPES)}"
            )
    return parts


def _image(part: Mapping[str, Any], number: int, spare: list[Any]) -> object:
    """Return the image of a part: its own, else the next of the separate ones."""
    image = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
    if isinstance(image, Mapping) and isinstance(image.get("url"), str):
        return image["url"]
    if image is not None:
        return image
    if not spare:
        raise UsageError(
            f"message {number} has a part for an image, but there is no image for it; put it into the part, "
            "{'type': 'image', 'path': 'dog.jpg'}, or give it after the messages"
        )
    return spare.pop(0)


def join_messages(
    messages: Iterable[tuple[str, Sequence[str | ImageRef]]], *, labeled: bool = True
) -> Conversation:
    """Return messages, each a role and its parts, as a conversation that ends with a question.

    Raises:
        UsageError: They end with the assistant, a message of the user is empty, or the assistant's has an image.
    """
    turns: list[tuple[str, Parts]] = []
    system: list[str] = []
    later_system: list[str] = []
    for number, (role, parts) in enumerate(messages, start=1):
        has_content = any(isinstance(part, ImageRef) or part.strip() for part in parts)
        if role in _SYSTEM_ROLES:
            texts = [part for part in parts if isinstance(part, str)] if has_content else []
            (later_system if turns else system).extend(texts)
        elif role == "user":
            if not has_content:
                raise UsageError(
                    f"message {number}, the user's, is empty; give it text or an image"
                )
            _add_turn(turns, "user", _with_system(later_system, list(parts)))
            later_system = []
        else:
            if any(isinstance(part, ImageRef) for part in parts):
                raise UsageError(
                    "a message of the assistant has an image; only the user shows images"
                )
            if later_system or not turns:
                _add_turn(turns, "user", _with_system(later_system, []))
                later_system = []
            _add_turn(turns, "assistant", list(parts))
    if later_system or (system and not turns):
        _add_turn(turns, "user", _with_system(later_system, []))
    if not turns or turns[-1][0] != "user":
        raise UsageError("the last message must be a question of the user")
    turns[0][1][:] = _with_system(system, turns[0][1])
    try:
        joined = tuple(_to_turn(role, parts, labeled=labeled) for role, parts in turns)
        return Conversation("chat", joined, allow_empty_turns=True)
    except ConversationError as error:
        raise UsageError(f"messages: {error}") from None


def _add_turn(turns: list[tuple[str, Parts]], role: str, parts: Parts) -> None:
    """Append a message to the last turn if that has the same role, else as a turn."""
    if not turns or turns[-1][0] != role:
        turns.append((role, parts))
    elif any(parts):
        separator = ["\n"] if any(turns[-1][1]) else []
        turns[-1][1].extend([*separator, *parts])


def _with_system(system: Sequence[str], parts: Parts) -> Parts:
    """Insert system texts before the first text, after any images that precede it."""
    if not system:
        return parts
    first = next((i for i, part in enumerate(parts) if isinstance(part, str)), len(parts))
    separator = ["\n"] if first < len(parts) else []
    return [*parts[:first], "\n".join(system), *separator, *parts[first:]]


def _to_turn(role: str, parts: Parts, *, labeled: bool) -> Turn:
    """Return a turn; images before all text are followed by a line end, or several of them labeled with letters."""
    parts = [part for part in parts if part != ""]
    images = [part for part in parts if isinstance(part, ImageRef)]
    if role == "user" and len(images) > 1 and parts[: len(images)] == images:
        texts = parts[len(images) :]
        if labeled:
            parts = [*label_images(images), *texts]
        elif texts and not str(texts[0]).startswith("\n"):
            parts = [*images, "\n", *texts]
    return Turn("user" if role == "user" else "assistant", tuple(parts))
