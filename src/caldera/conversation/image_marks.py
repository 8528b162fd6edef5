"""Image marks in the texts of a record, in the dialects of other projects, and the images that they stand for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from caldera.conversation.image_values import ImageSource, parse_image
from caldera.conversation.turns import IMAGE_PLACEHOLDER
from caldera.errors import ConversationError, shorten_value

MarkKind = Literal["image", "numbered", "path", "media"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """A form of image marks."""

    name: str
    """Projects that use it."""

    example: str
    pattern: str
    """Regular expression without regard to case; its group is the number or the path."""

    kind: MarkKind = "image"
    """The next image, an image by number, an image by its path, or a medium that is not read."""


# The repetitions are bounded, so that no text takes more than linear time.
_PATH = r"[^<>\[\]\(\)\n]{1,300}?\.(?:jpe?g|png|webp|gif|bmp|tiff?)"
_MARKDOWN = rf"!\[[^\]]{{0,300}}\]\(\s?(data:[^)\s]+|{_PATH}(?:\?[^)\s]{{0,300}})?)(?:\s\"[^\"]{{0,300}}\")?\s?\)"
_HTML = rf"<img\s(?:[^<>]{{0,300}}\s)?src\s?=\s?[\"']?(data:[^\"'<>\s]+|{_PATH})[\"']?(?:\s[^<>]{{0,300}})?/?>"
_QWEN2 = r"<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|(?:<\|image_pad\|>)+"
_KIMI = r"<\|media_start\|>image<\|media_content\|>(?:<\|media_pad\|>)*<\|media_end\|>"
_GLM = r"<\|begin_of_image\|>(?:<\|(?:image|endoftext)\|>)*<\|end_of_image\|>"
_GEMMA = r"<start_of_image>(?:(?:<image_soft_token>)*<end_of_image>)?|(?:<image_soft_token>)+"
_IDEFICS = r"<fake_token_around_image>(?:<image>)+<fake_token_around_image>"
_NUMBERED = r"<(?:image|img|picture)[_ -]?(\d{1,3})>|\[(?:image|img|picture)[_ -](\d{1,3})\]"
_SPELLED = r"<\s?(?:image|img|picture|photo)s?\s?/?>|&lt;image&gt;|\[(?:image|picture|photo)\]|\{\{?image\}?\}"
_MEDIA = (
    r"<\|vision_start\|>(?:<\|video_pad\|>)*<\|vision_end\|>|\[(?:video|audio)\]|"
    r"<\|?(?:video|vid|audio|speech|sound|point[ _-]?cloud|3d|bbox|ref-object)"
    r"(?:[ _-]?(?:pad|here|context|placeholder|(?:soft[ _-])?token|bos|eos|start|end)){0,3}(?:[ _-]?\d+)?\|?>"
)

DIALECTS = (
    Dialect("MiniCPM-V", "(<image>./</image>)", r"\(<image>\./</image>\)|<image>(?:\./)?</image>"),
    Dialect("Qwen-VL", "<img>cat.jpg</img>", r"<img>([^<>\n]{1,300})</img>", "path"),
    Dialect("path", "<image>cat.jpg</image>", rf"<image>\s?({_PATH})\s?</image>", "path"),
    Dialect("BBCode", "[img]cat.jpg[/img]", r"\[img\]([^\[\]\n]+)\[/img\]", "path"),
    Dialect("Markdown", "![a cat](cat.jpg)", _MARKDOWN, "path"),
    Dialect("HTML", '<img src="cat.jpg">', _HTML, "path"),
    Dialect(
        "InternVL", "<img><IMG_CONTEXT></img>", r"<img>(?:<IMG_CONTEXT>)*</img>|(?:<IMG_CONTEXT>)+"
    ),
    Dialect("Qwen2-VL", "<|vision_start|><|image_pad|><|vision_end|>", _QWEN2),
    Dialect("Kimi-VL", "<|media_start|>image<|media_content|><|media_pad|><|media_end|>", _KIMI),
    Dialect("GLM-4V", "<|begin_of_image|><|image|><|end_of_image|>", _GLM),
    Dialect("Gemma 3", "<start_of_image>", _GEMMA),
    Dialect("Idefics", "<fake_token_around_image><image><fake_token_around_image>", _IDEFICS),
    Dialect("LLaVA", "<im_start><image><im_end>", r"<im_start>(?:<image>|(?:<im_patch>)+)<im_end>"),
    Dialect("MiniGPT-4, XComposer", "<ImageHere>", r"<img><ImageHere></img>|<ImageHere>"),
    Dialect("Pixtral", "[IMG]", r"\[IMG\](?:\[IMG_BREAK\])?(?:\[IMG_END\])?"),
    Dialect("Llama 3.2, mPLUG-Owl", "<|image|>", r"<\|image\|>"),
    Dialect(
        "DeepSeek-VL, Yi-VL, Emu",
        "<image_placeholder>",
        r"\[?<(?:image|img)[ _-](?:placeholder|token|plh)>\]?",
    ),
    Dialect("Phi-3", "<|image_1|>", r"<\|(?:image|img)[_ -]?(\d{1,3})\|>", "numbered"),
    Dialect("MMMU", "<image_1>", _NUMBERED, "numbered"),
    Dialect("LLaVA, LLaVA-NeXT, InternVL", IMAGE_PLACEHOLDER, r"(?-i:<image>)"),
    Dialect("other spelling", "<Image>", _SPELLED),
    Dialect("video, audio, boxes", "<video>", _MEDIA, "media"),
)
"""Forms of image marks. Where several match, the first one is meant."""

_ALTERNATIVES = "|".join(
    f"(?P<d{number}>{dialect.pattern})" for number, dialect in enumerate(DIALECTS)
)
_ANY = re.compile(rf"(?=[<\[{{&(!])(?:{_ALTERNATIVES})", re.IGNORECASE)
_MAYBE = re.compile(r"[<\[{&]")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_MENTION = re.compile(r"\s+(?:html\s+)?(?:tag|element|token|keyword|attribute)s?\b", re.IGNORECASE)
_CLOSING_TAG = re.compile(r"</(?!im(?:g|age)>)[a-z][a-z0-9]*>", re.IGNORECASE)
_UNKNOWN = re.compile(
    r"""(?<!["'])<\|?(?:[\w:.-]{0,20}(?:image|img|picture)[\w:. -]{0,20}|im_\w{1,12}|vis(?:ion|ual)_?\w{0,12})\|?>""",
    re.IGNORECASE,
)
"""What may be a mark of a dialect that is not known."""

_QUOTES = {'"': '"', "'": "'", "\N{LEFT DOUBLE QUOTATION MARK}": "\N{RIGHT DOUBLE QUOTATION MARK}"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of an image, or an image part of a message that does not name its image."""

    text: str = IMAGE_PLACEHOLDER
    kind: MarkKind = "image"
    value: str = ""
    """Number or path."""

    dialect: str = ""


_PLACEHOLDER = Mark(dialect="LLaVA")

Piece = str | Mark | ImageSource


def split_marks(text: str, keys: Sequence[str] = ()) -> list[Piece]:
    """Split a text at its image marks; `keys` are further marks, each the name of an image."""
    for key in keys:
        if key in text:
            before, _, after = text.partition(key)
            return [*split_marks(before, keys), Mark(key, "path", key), *split_marks(after, keys)]
    if not _MAYBE.search(text):
        return [text] if text else []
    if not _MAYBE.search(text.replace(IMAGE_PLACEHOLDER, "")):
        return _split_placeholders(text)
    pieces: list[Piece] = []
    end = 0
    code = [span.span() for span in _CODE.finditer(text)]
    for match in _ANY.finditer(text):
        dialect = DIALECTS[int((match.lastgroup or "d0")[1:])]
        if match[0] != IMAGE_PLACEHOLDER and (
            any(start <= match.start() < stop for start, stop in code)
            or _is_mention(text, match, dialect)
        ):
            continue
        inner = [group for group in match.groups()[match.lastindex or 0 :] if group]
        mark = Mark(match[0], dialect.kind, inner[0] if inner else "", dialect.name)
        pieces += [text[end : match.start()], mark]
        end = match.end()
    return [piece for piece in [*pieces, text[end:]] if piece != ""]


def _split_placeholders(text: str) -> list[Piece]:
    """Split a text that has no other marks than <image>."""
    first, *rest = text.split(IMAGE_PLACEHOLDER)
    pieces: list[Piece] = [first]
    for part in rest:
        pieces += [_PLACEHOLDER, part]
    return [piece for piece in pieces if piece != ""]


def _is_mention(text: str, match: re.Match[str], dialect: Dialect) -> bool:
    """Return whether a text only mentions a mark: in quotes, as the name of a tag, or as a part of HTML."""
    start, end = match.span()
    if start and _QUOTES.get(text[start - 1]) == text[end : end + 1] != "":
        return True
    if _MENTION.match(text, end):
        return True
    if dialect.name == "HTML" and _CLOSING_TAG.search(text):
        return True
    name = match[0].strip("<>|").lower()
    return dialect.kind == "media" and f"</{name}>" in text.lower() and "<source" in text.lower()


def place_images(
    questions: Sequence[Sequence[Piece]],
    answers: Sequence[str],
    images: Sequence[ImageSource],
    notes: list[str],
) -> list[list[str | ImageSource]]:
    """Return the user's turns with the images of a record in place of their marks, one to one.

    Without any mark the images precede the first question. What was changed is added to `notes`.

    Raises:
        ConversationError: Marks and images do not fit one to one, or a mark means another medium.
    """
    pieces = [piece for turn in questions for piece in turn]
    marks = [piece for piece in pieces if isinstance(piece, Mark)]
    for mark in marks:
        if mark.kind == "media":
            raise ConversationError(
                f"has the mark {shorten_value(mark.text)} of a medium that is not read; remove the record"
            )
    remaining = list(images)
    own = {id(p): _take(p, remaining) for p in pieces if isinstance(p, ImageSource)}
    if remaining and questions and not marks and not own:
        return _put_first(questions, answers, remaining, notes)
    placed = iter(list(_assign(marks, remaining, len(images) + len(own), notes)))
    return [
        [
            next(placed) if isinstance(piece, Mark) else piece if isinstance(piece, str) else own[id(piece)]
            for piece in turn
        ]
        for turn in questions
    ]  # fmt: skip


def _put_first(
    questions: Sequence[Sequence[Piece]],
    answers: Sequence[str],
    images: Sequence[ImageSource],
    notes: list[str],
) -> list[list[str | ImageSource]]:
    """Return the user's turns, without any mark, with the images before the first one."""
    for answer in answers:
        for piece in split_marks(answer):
            if isinstance(piece, Mark) and piece.kind in ("image", "numbered"):
                raise ConversationError(
                    f"has the mark {shorten_value(piece.text)} of its image in an answer of the assistant; only a "
                    "user shows images"
                )
    for text in (text for turn in questions for text in _texts(turn)):
        if isinstance(text, str) and (unknown := _UNKNOWN.search(_CODE.sub("", text))):
            raise ConversationError(
                f"has no known mark of its image, but {shorten_value(unknown[0])}; write {IMAGE_PLACEHOLDER} in its "
                "place, or at the start if it is text"
            )
    notes.append("images without a mark put before the first question")
    first = [part for image in images for part in (image, "\n")]
    return [[*first, *_texts(questions[0])], *(_texts(turn) for turn in questions[1:])]


def _texts(turn: Sequence[Piece]) -> list[str | ImageSource]:
    return [piece for piece in turn if isinstance(piece, str)]


def _assign(
    marks: Sequence[Mark], remaining: list[ImageSource], num_images: int, notes: list[str]
) -> Iterator[ImageSource | str]:
    """Yield the image of each mark, or its text where all images have a place without it."""
    num_listed = len(remaining)
    by_path = {
        id(mark): _take(parse_image(mark.value), remaining) if mark.dialect else _keyed(mark, remaining)
        for mark in marks
        if mark.kind == "path"
    }  # fmt: skip
    unnamed = [mark for mark in marks if mark.kind == "image"]
    numbered = [mark for mark in marks if mark.kind == "numbered"]
    numbers = [int(mark.value) for mark in numbered]
    by_number: dict[int, ImageSource] = {}
    if not unnamed and remaining and len(numbers) == len(remaining):
        start = min(numbers)
        if start in (0, 1) and sorted(numbers) == [*range(start, start + len(numbers))]:
            by_number = {number: remaining[number - start] for number in numbers}
            remaining = []
    num_images += sum(mark.dialect != "" for mark in marks if mark.kind == "path")
    if len(unnamed) != len(remaining) or (numbers and max(numbers) > num_images):
        raise _count_error(marks, num_listed)
    images = iter(remaining)
    for mark in marks:
        if mark.kind == "numbered" and not by_number:
            notes.append(f"mark {mark.text!r} of an image that has a place already kept as text")
            yield mark.text
            continue
        if mark.dialect and mark.text != IMAGE_PLACEHOLDER:
            notes.append(f"{mark.dialect} mark {shorten_value(mark.text)} read as <image>")
        yield (
            by_path[id(mark)]
            if mark.kind == "path"
            else (by_number[int(mark.value)] if mark.kind == "numbered" else next(images))
        )


def _take(source: ImageSource, remaining: list[ImageSource]) -> ImageSource:
    """Remove and return the remaining image that a source names, by its path or else its file name; else the source."""
    equal = [image for image in remaining if image == source or source.path == image.path != ""]
    same_name = [image for image in remaining if source.name and image.name == source.name]
    for candidates in (equal, same_name):
        if candidates and (candidates is equal or len(candidates) == 1):
            remaining.remove(candidates[0])
            return candidates[0]
    return source


def _keyed(mark: Mark, remaining: list[ImageSource]) -> ImageSource:
    """Remove and return the image with the key of a mark."""
    for image in remaining:
        if image.key == mark.value:
            remaining.remove(image)
            return image
    raise ConversationError(f"holds the mark {mark.text!r} more than once; keep one of them")


def _count_error(marks: Sequence[Mark], num_images: int) -> ConversationError:
    """Return the error of marks and images that do not fit one to one."""
    foreign = [shorten_value(mark.text) for mark in marks if mark.text != IMAGE_PLACEHOLDER]
    names = f" ({', '.join([*dict.fromkeys(foreign)][:3])})" if foreign else ""
    kind = "image mark(s)" if foreign else f"{IMAGE_PLACEHOLDER} placeholder(s)"
    is_other = " of other names" if any(mark.kind == "path" for mark in marks) else ""
    return ConversationError(
        f"has {len(marks)} {kind}{names} but {num_images} image(s){is_other}; give each image one placeholder in a "
        "human value"
    )
