"""A data file, a record and a model in, what the model sees of it out."""

from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import Conversation, read_conversations
from caldera.errors import UsageError
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.scenes.backbones import find_backbone
from caldera.templates.encoding import encode
from caldera.templates.inspection import Segment, TokenInfo, segments, tokens
from caldera.templates.template import find_template


@dataclass(frozen=True, slots=True)
class InspectedRecord:
    """One record as a model sees it."""

    id: str
    template: str
    stretches: list[Segment]
    tokens: list[TokenInfo]


def inspect_record(
    file: Path,
    record: str,
    model: Path | None,
    template: str | None,
    ignore: frozenset[str],
    images: Path | None = None,
) -> InspectedRecord:
    """Encode one record for a model folder, or for the shipped backbones; its images need be there only for tiles.

    Raises:
        CalderaError: File, record, model or template is not there or cannot be used.
    """
    conversation = _find_record(read_conversations(file, ignore), record, file)
    assistant = load_model_folder(model) if model else _default_model(template or "vicuna_v1")
    name = template or assistant.card.template
    encoded = encode(find_template(name).render(conversation), assistant.tokenizer)
    folder = images or file.parent
    layouts = assistant.layouts(folder / path for path in encoded.image_paths)
    counts = assistant.image_tokens(layouts)
    return InspectedRecord(
        conversation.id,
        name,
        segments(encoded, assistant.tokenizer, counts),
        tokens(encoded, assistant.tokenizer, counts),
    )


def _find_record(conversations: list[Conversation], record: str, file: Path) -> Conversation:
    """Find a record by id, else by number.

    Raises:
        UsageError: There is no such record.
    """
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
    """Join the shipped backbones for a template; the projector's weights do not matter here."""
    towers = find_backbone("scenes-vit"), find_backbone("scenes-llama")
    return assemble(*towers, template=template)
