r"""Conversations of text and images, read and written as LLaVA's JSON.

One JSON object per conversation:

    {"id": "7", "image": "dog.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A dog."}]}

`image` is a list if there are several. Each `<image>` in a human value is the placeholder of the next image. It is
replaced by an `ImageRef` once, when the record is read; `<image>` in any later text (a user's question, a model's
answer) stays text.
"""

from caldera.conversation.reader import from_record, read_conversations
from caldera.conversation.turns import (
    IMAGE_PLACEHOLDER,
    LETTERS,
    Conversation,
    ImageRef,
    Role,
    Turn,
    is_valid_utf8,
    label_images,
)
from caldera.conversation.writer import json_schema, to_record, write_conversations

__all__ = [
    "IMAGE_PLACEHOLDER",
    "LETTERS",
    "Conversation",
    "ImageRef",
    "Role",
    "Turn",
    "from_record",
    "is_valid_utf8",
    "json_schema",
    "label_images",
    "read_conversations",
    "to_record",
    "write_conversations",
]
