"""Records as turns and images, in the forms of LLaVA, ShareGPT, OpenAI, ms-swift, alpaca and The Cauldron."""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from caldera.conversation.image_marks import Mark, Piece, split_marks
from caldera.conversation.image_values import ImageSource, parse_image, parse_images
from caldera.conversation.media_fields import is_empty, raise_if_lost
from caldera.conversation.turns import Role
from caldera.errors import ConversationError, did_you_mean, shorten_value

ROLES: dict[str, Role | Literal["system"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
"""Role of each accepted name, in any letter case."""

TURN_FIELDS = ("conversations", "messages", "conversation", "texts")
"""Fields that hold a list of turns."""

PAIR_FIELDS = (
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Fields of a question and its answer."""

PAIR_TURN_KEYS = (("user", "assistant"), ("human", "assistant"), ("human", "gpt"))
"""Fields of a question and its answer in one item of a list of turns."""

IMAGE_FIELDS = (
    "image", "images", "image_path", "image_paths", "image_file", "image_files", "image_url", "image_urls",
    "img", "imgs", "img_path", "img_paths", "picture", "pictures", "photo", "photos", "file_name",
)  # fmt: skip
"""Fields that hold the images of a record."""

_LOSS_FIELDS = ("loss", "train", "train_on_turn")
"""Fields of a turn that are false where it should not be learned."""

_IMAGE_PARTS = ("image", "image_url", "input_image", "image_path")
_PART_IMAGES = ("image_url", "image", "url", "path", "source", "base64", "data", "image_path")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PART_SETTINGS = frozenset(
    {"detail", "min_pixels", "max_pixels", "resized_height", "resized_width", "cache_control", "index", "type"}
)  # fmt: skip


@dataclass(slots=True)
class RawRecord:
    """A record before its images are placed in its texts."""

    id: str
    images: list[ImageSource]
    keys: tuple[str, ...] = ()
    """Marks of the images, where the record gives them."""

    turns: list[tuple[Role, list[Piece]]] = field(default_factory=list)

    def sources(self) -> list[ImageSource]:
        """Return the images of the record and those in its messages."""
        pieces = (piece for _, pieces in self.turns for piece in pieces)
        return [*self.images, *(piece for piece in pieces if isinstance(piece, ImageSource))]


@dataclass(slots=True)
class RecordParser:
    """Parser of a record in any of the forms."""

    ignore_fields: Collection[str]
    drop_fields: bool
    """Whether to drop unknown fields, with a note, rather than raise."""

    notes: list[str]
    """What was changed."""

    def parse(self, record: object, default_id: str) -> RawRecord:
        """Return the id, turns and images of a record.

        Raises:
            ConversationError: The record has none of the forms, or something in it would be lost.
        """
        if not isinstance(record, dict):
            raise ConversationError(
                f"a record should be a JSON object, got {shorten_value(record)}"
            )
        turns, turn_fields = self._turns(record)
        raw = RawRecord(_identity(record.get("id"), default_id), [])
        image_fields = _image_fields(record)
        for name in image_fields[:1]:
            raw.images = parse_images(record[name])
            raw.keys = tuple(image.key for image in raw.images if image.key)
        if not image_fields:
            image_fields = _numbered_fields(record)
            raw.images = parse_images([record[name] for name in image_fields])
        used = {"id", *turn_fields, *image_fields}
        for number, turn in enumerate(turns, start=1):
            self._add_turn(raw, turn, number)
        unused = {key: record[key] for key in record if key not in used}
        self._check_unused(unused, [image.path or "data" for image in raw.sources()])
        return raw

    def _turns(self, record: dict[str, Any]) -> tuple[list[Any], set[str]]:
        """Return the turns of a record, and the fields that hold them."""
        names = [name for name in TURN_FIELDS if record.get(name) is not None]
        if len(names) > 1:
            names = [name for name in names if record[name] != []] or names[:1]
        pairs = [
            pair
            for pair in PAIR_FIELDS
            if pair[1] in record
            and not is_empty([record.get(name) for name in _question_fields(pair[0])])
        ]
        if len(names) + len(pairs) != 1:
            raise _form_error(record, [*names, *(" and ".join(pair) for pair in pairs)])
        if not names:
            return _pair_turns(record, *pairs[0])
        turns = _transposed(record[names[0]])
        if not isinstance(turns, list):
            raise ConversationError(
                f"field {names[0]!r} should be a list of turns, got {shorten_value(turns)}"
            )
        if not turns:
            raise ConversationError(f"field {names[0]!r} needs at least a human and a gpt turn")
        for keys in PAIR_TURN_KEYS:
            if isinstance(turns[0], dict) and {*keys} <= turns[0].keys():
                return [turn for pair in turns for turn in _turns_of_pair(pair, keys)], {names[0]}
        system = [{"role": "system", "content": record["system"]}] if record.get("system") else []
        return [*system, *turns], {names[0], "system"}

    def _add_turn(self, raw: RawRecord, turn: object, number: int) -> None:
        """Add a turn to a record; a system turn is dropped with a note."""
        if not isinstance(turn, dict):
            raise ConversationError(
                f"turn {number} should be a JSON object, got {shorten_value(turn)}"
            )
        if len(turn) == 2:
            # Nearly every turn has LLaVA's form, and data sets have millions of turns.
            speaker, text = turn.get("from"), turn.get("value")
            if isinstance(text, str) and speaker == "gpt":
                raw.turns.append(("assistant", [text]))
                return
            if isinstance(text, str) and speaker == "human":
                raw.turns.append(("user", split_marks(text, raw.keys)))
                return
        role_key = "from" if "from" in turn else "role"
        text_key = next((key for key in ("value", "content", "text") if key in turn), "value")
        role = _role(turn, role_key, text_key, number)
        pieces = self._pieces(turn[text_key], raw, number, is_answer=role == "assistant")
        local_key = next((key for key in ("images", "image") if not is_empty(turn.get(key))), "")
        local = parse_images(turn[local_key]) if local_key else []
        if local and any(isinstance(piece, Mark) for piece in pieces):
            raw.images += local
        elif local:
            self.notes.append("images of a message put before its text")
            pieces = [*(part for image in local for part in (image, "\n")), *pieces]
        unused = {key: turn[key] for key in turn if key not in (role_key, text_key, local_key)}
        prefix = f"conversations.{number - 1}."
        self._check_unused(unused, [image.path or "data" for image in local], prefix)
        if role != "user" and any(not isinstance(piece, str) for piece in pieces):
            raise ConversationError(
                f"turn {number}, the {role}'s, holds an image; only a user shows images"
            )
        if role != "system":
            raw.turns.append((role, pieces))
        elif pieces:
            self.notes.append("system turn removed")

    def _pieces(
        self, content: object, raw: RawRecord, number: int, *, is_answer: bool
    ) -> list[Piece]:
        """Return the texts, marks and images of a turn's content; in an answer a mark is text."""
        if isinstance(content, str):
            return [content] if is_answer else split_marks(content, raw.keys)
        if isinstance(content, bool | int) or (
            isinstance(content, float) and math.isfinite(content)
        ):
            self.notes.append("number read as text")
            return [str(content).lower() if isinstance(content, bool) else str(content)]
        parts = [content] if isinstance(content, dict) else content
        if not isinstance(parts, list):
            raise ConversationError(
                f"turn {number} should have a text, got {shorten_value(content)}"
            )
        if is_answer and sum(isinstance(part, str) for part in parts) > 1:
            raise ConversationError(
                f"turn {number} has a list of {len(parts)} answers; keep one of them"
            )
        pieces: list[Piece] = []
        for part in parts:
            if isinstance(part, dict):
                pieces += _part_pieces(part, raw, number, is_answer=is_answer)
            else:
                pieces += self._pieces(part, raw, number, is_answer=is_answer)
        return pieces

    def _check_unused(
        self, fields: dict[str, Any], image_paths: Collection[str], prefix: str = ""
    ) -> None:
        """Check fields that are not used: media are lost with them, and other fields may be typos."""
        fields = {
            key: value
            for key, value in fields.items()
            if not is_empty(value) or (prefix and value is False and key in _LOSS_FIELDS)
        }
        if not fields:
            return
        raise_if_lost(fields, image_paths, self.ignore_fields)
        unknown = sorted(map(str, fields.keys() - set(self.ignore_fields)))
        if self.drop_fields:
            self.notes += [
                f"field {key!r}{' of turns' if prefix else ''} removed" for key in unknown
            ]
        elif unknown:
            names = {"from", "value"} if prefix else {"id", "image", "conversations"}
            listed = ", ".join(f"{prefix}{key}"[:60] for key in unknown)
            quoted = f"{'field' if len(unknown) == 1 else 'fields'} {listed!r}"
            options = " ".join(f"--ignore-field {key}"[:60] for key in unknown)
            raise ConversationError(
                f"unknown {quoted}; {did_you_mean(unknown[0][:60], names)} (or pass {options})"
            )


def _role(
    turn: dict[str, Any], role_key: str, text_key: str, number: int
) -> Role | Literal["system"]:
    """Return the role of a turn that has a role and a text."""
    for key in (role_key, text_key):
        if turn.get(key) is None:
            problem = "is null" if key in turn else "is missing"
            raise ConversationError(f"field 'conversations.{number - 1}.{key}' {problem}; add it")
    name = turn[role_key]
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise ConversationError(
            f"field 'conversations.{number - 1}.{role_key}': turn {number} has the role {shorten_value(name)}; "
            f"{did_you_mean(str(name)[:40], ROLES)}"
        )
    return role


def _part_pieces(
    part: dict[str, Any], raw: RawRecord, number: int, *, is_answer: bool
) -> list[Piece]:
    """Return the pieces of a part of a message; a line break follows an image."""
    kind = part.get("type") or ("text" if not is_empty(part.get("text")) else "image")
    if kind not in (*_TEXT_PARTS, *_IMAGE_PARTS) or not part.keys() & {"type", "text", "image"}:
        raise ConversationError(
            f"turn {number} should have a text or an image, got {shorten_value(part)}"
        )
    names = ("text",) if kind in _TEXT_PARTS else _PART_IMAGES
    used = next((name for name in names if not is_empty(part.get(name))), "")
    raise_if_lost({key: part[key] for key in part.keys() - _PART_SETTINGS - {used}}, ())
    value = part.get(used)
    if kind in _TEXT_PARTS:
        if not isinstance(value, str | None):
            raise ConversationError(f"turn {number} should have a text, got {shorten_value(value)}")
        return [value or ""] if is_answer else split_marks(value or "", raw.keys)
    if value is not None:
        return [parse_image(value), "\n"]
    if isinstance(index := part.get("index"), int):
        if not 0 <= index < len(raw.images):
            raise ConversationError(
                f"turn {number} shows image {index} of {len(raw.images)}, counted from 0; add the image or correct it"
            )
        return [raw.images[index], "\n"]
    return [Mark(), "\n"]


def _identity(value: object, default: str) -> str:
    """Return the id of a record; the default if it has none."""
    if is_empty(value):
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ConversationError(
            f"field 'id' should be a text or a whole number, got {shorten_value(value)}"
        )
    return str(value)


def _image_fields(record: dict[str, Any]) -> list[str]:
    """Return the field that holds the images of a record, and the others that hold the same."""
    names = [name for name in record if name in IMAGE_FIELDS and not is_empty(record[name])]
    if len(names) < 2:
        return names
    names.sort(key=IMAGE_FIELDS.index)
    images = _wrapped(record[names[0]])
    return [name for name in names if _wrapped(record[name]) == images]


def _numbered_fields(record: dict[str, Any]) -> list[str]:
    """Return the fields image_1, image_2 ... that hold the images of a record, as in MMMU."""
    count = itertools.count(1)
    names = map("image_{}".format, count)
    return list(itertools.takewhile(lambda name: not is_empty(record.get(name)), names))


def _wrapped(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _question_fields(name: str) -> tuple[str, ...]:
    """Return the fields that hold a question: alpaca's are two."""
    return ("instruction", "input") if name == "instruction" else (name,)


def _pair_turns(record: dict[str, Any], question: str, answer: str) -> tuple[list[Any], set[str]]:
    """Return the turns of a record of a question and an answer, after those of its history."""
    used = {*_question_fields(question), answer, "system", "history"}
    first, last = record.get(question), record[answer]
    if isinstance(first, list) and isinstance(last, list):
        return [*first, *last], used
    turns: list[Any] = []
    if record.get("system"):
        turns.append({"role": "system", "content": record["system"]})
    for pair in record.get("history") or []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ConversationError(
                f"field 'history' should be a list of pairs of question and answer, got {shorten_value(pair)}"
            )
        turns += _exchange(*pair)
    texts = [record[name] for name in _question_fields(question) if not is_empty(record.get(name))]
    if len(texts) > 1:
        if not all(isinstance(text, str | int | float) for text in texts):
            raise ConversationError(
                f"fields 'instruction' and 'input' should be texts, got {shorten_value(texts)}"
            )
        first = "\n".join(map(str, texts))
    elif texts:
        first = texts[0]
    return [*turns, *_exchange(first, last)], used


def _transposed(turns: object) -> object:
    """Return the turns of an object of lists, as some tables store them, as a list of objects."""
    if isinstance(turns, dict) and turns:
        columns = [column if isinstance(column, list) else [column] for column in turns.values()]
        if len({len(column) for column in columns}) == 1 and len(columns[0]) > 1:
            return [dict(zip(turns, row, strict=True)) for row in zip(*columns, strict=True)]
    return turns


def _exchange(question: object, answer: object) -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _turns_of_pair(pair: object, keys: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the turns of a question and an answer in one object."""
    if not isinstance(pair, dict) or not {*keys} <= pair.keys():
        raise ConversationError(
            f"expected a turn with {keys[0]} and {keys[1]}, got {shorten_value(pair)}"
        )
    rest = {key: value for key, value in pair.items() if key not in (*keys, "source")}
    question, answer = _exchange(*(pair[key] for key in keys))
    return [{**rest, **question}, answer]


def _form_error(record: dict[str, Any], forms: Sequence[str]) -> ConversationError:
    """Return the error of a record that has no form, or more than one."""
    if forms:
        return ConversationError(
            f"a record has both {' and '.join(forms[:2])}; it needs one of them"
        )
    if {"images", "annotations"} <= record.keys():
        advice = "COCO's annotations are read by: caldera data generate coco FILE --out NEW.json"
    elif record.keys() & {*IMAGE_FIELDS} and record.keys() & {"caption", "captions", "text"}:
        advice = "captions are read by: caldera data import captions FILE --out NEW.json"
    else:
        advice = "add it, or use another form of docs/data.md"
    names = ", ".join(str(name)[:30] for name in [*record][:8])
    return ConversationError(
        f"field 'conversations' is missing; {advice} (the record has: {names or 'no field'})"
    )
