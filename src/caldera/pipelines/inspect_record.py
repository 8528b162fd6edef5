"""Inspection of one record of a data file as a model encodes it."""

from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import Conversation, read_conversations
from caldera.conversation.reader import ReadOptions
from caldera.errors import UsageError
from caldera.formats.assemble import assemble
from caldera.formats.open_model import load_model
from caldera.model.bundle import LlavaBundle
from caldera.scenes.backbones import find_backbone
from caldera.templates.encoding import encode
from caldera.templates.inspection import Segment, TokenInfo, segments, tokens
from caldera.templates.registry import find_template


@dataclass(frozen=True, slots=True)
class InspectedRecord:
    """Segments and tokens of one encoded record."""

    id: str
    template: str
    segments: list[Segment]
    tokens: list[TokenInfo]


def inspect_record(
    file: Path,
    record: str,
    model: str | Path | None,
    template: str | None,
    options: ReadOptions,
) -> InspectedRecord:
    """Encode one record for a model, as `load_model` takes it, or for the packaged backbones.

    Its images need to exist only for models that cut them into tiles.

    Raises:
        CalderaError: File, record, model or template does not exist or cannot be used.
    """
    conversation = _find_record(read_conversations(file, options=options), record, file)
    assistant = load_model(model) if model else _default_model(template or "vicuna_v1")
    name = template or assistant.card.template
    encoded = encode(find_template(name).for_training.render(conversation), assistant.tokenizer)
    folder = options.images or file.parent
    layouts = assistant.layouts(folder / path for path in encoded.image_paths)
    counts = assistant.image_tokens(layouts)
    return InspectedRecord(
        conversation.id,
        name,
        segments(encoded, assistant.tokenizer, counts),
        tokens(encoded, assistant.tokenizer, counts),
    )


def _find_record(conversations: list[Conversation], record: str, file: Path) -> Conversation:
    """Return a record by id, else by number."""
    for conversation in conversations:
        if conversation.id == record:
            return conversation
    if record.isdecimal() and int(record) < len(conversations):
        return conversations[int(record)]
    raise UsageError(
        f"{file} has no record {record!r}; give an id, such as {conversations[0].id!r}, or a number below "
        f"{len(conversations)}"
    )


def _default_model(template: str) -> LlavaBundle:
    """Join the packaged backbones; the weights of the projector do not matter here."""
    towers = find_backbone("scenes-vit"), find_backbone("scenes-llama")
    return assemble(*towers, template=template)
