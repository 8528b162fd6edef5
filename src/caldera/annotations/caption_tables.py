"""Tables of images and captions: rows with any delimiter, header and column names, recognized by content.

Hugging Face's `metadata.csv`, Flickr8k's `captions.txt` and `Flickr8k.token.txt`, Flickr30k's `results.csv`, and what
spreadsheet programs write. The suffix of a file decides nothing.
"""

import csv
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from caldera.errors import AnnotationError, UsageError

IMAGE_COLUMNS = (
    "image", "file_name", "filename", "image_name", "image_path", "image_file", "imagename", "filepath", "file_path",
    "path", "file", "img", "img_path", "img_name", "image_filename", "photo",
)  # fmt: skip
CAPTION_COLUMNS = (
    "caption", "text", "comment", "captions", "description", "sentence", "caption_text", "raw", "title", "alt_text",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "class_name", "category", "category_name", "kind", "tag", "tags", "target",
    "name",
)  # fmt: skip
"""Usual names of the columns; the first that a table has is read. The first of each tuple is what a column holds."""

_DELIMITERS = ("\t", "|", ";", ",")
"""From the least to the most frequent in captions."""

_NAMES = {"\t": "tabs", "|": "vertical bars", ";": "semicolons", ",": "commas"}

_IMAGE_NAME = re.compile(
    r"""^["']?[^"'\t|;,]+\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?["']?$""", re.IGNORECASE
)
_ROW_START = re.compile(
    r"""[\r\n]["']?[^"'\t|;,\r\n]+\.(jpe?g|png|webp|gif|bmp|tiff?)(#\d+)?["']?[;,]""", re.IGNORECASE
)
"""Start of a row within the quotes of another one."""

_DELIMITER_LINE = re.compile(r'"?sep=.?"?\s*$')
"""Line before the header with the delimiter for Excel; the header shows it too."""

_NUMBER_SUFFIX = re.compile(r"#\d+$")
"""Flickr8k numbers the captions of an image in its name: 1.jpg#0."""

Columns = tuple[str, str]
Row = dict[str, str] | AnnotationError


def parse_columns(text: str | None) -> Columns | None:
    """Return the names of the image and the caption column of a `--columns` option."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise UsageError(
            f"--columns {text} is not two names; write the columns of image and caption, such as file_name,text"
        )
    return names[0], names[1]


def choose_columns(
    names: Sequence[str],
    columns: Columns | None,
    subject: str,
    text_columns: Sequence[str] = CAPTION_COLUMNS,
) -> Columns:
    """Return the names of the image and the text column, or raise AnnotationError."""
    names_by_key = {name.strip().lower(): name for name in names if name}
    listed = f"{subject} has the columns {', '.join(names) or 'of no name'}"
    if columns:
        if missing := [name for name in columns if name.lower() not in names_by_key]:
            raise AnnotationError(f"{listed}, none of them {missing[0]}; correct --columns")
        return names_by_key[columns[0].lower()], names_by_key[columns[1].lower()]
    chosen: list[str] = []
    for usual in (IMAGE_COLUMNS, text_columns):
        name = next((names_by_key[name] for name in usual if name in names_by_key), None)
        if name is None:
            raise AnnotationError(
                f"{listed}, none of them known as the {usual[0]}; name both with --columns "
                f"IMAGE,{text_columns[0].upper()}"
            )
        chosen.append(name)
    return chosen[0], chosen[1]


def read_table(
    path: Path, columns: Columns | None, text_columns: Sequence[str] = CAPTION_COLUMNS
) -> Iterator[tuple[str, Row]]:
    """Yield image and text of each row, as `image` and `caption`, with its location, or what is wrong with the row.

    Raises:
        AnnotationError: The file cannot be read, or its columns are not known.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next((line for line in _table_lines(file) if line.strip()), "")
            file.seek(0)
            yield from _read_lines(path, _table_lines(file), first, columns, text_columns)
    except OSError as error:
        raise AnnotationError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path} is not UTF-8 text; save it as UTF-8 ({error})") from error
    except csv.Error as error:
        raise AnnotationError(
            f"{path} is no table that can be read: {error}; check its quotes"
        ) from error


def _table_lines(file: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a file; an empty one for Excel's line with the delimiter."""
    for number, line in enumerate(file):
        yield "\n" if number == 0 and _DELIMITER_LINE.match(line) else line


def _read_lines(
    path: Path,
    lines: Iterable[str],
    first: str,
    columns: Columns | None,
    text_columns: Sequence[str],
) -> Iterator[tuple[str, Row]]:
    """Yield image, text and split of every row."""
    if not first.strip():
        raise AnnotationError(
            f"{path} is empty; it should hold an image and a {text_columns[0]} a line"
        )
    usual = {*IMAGE_COLUMNS, *text_columns, *(name.lower() for name in columns or ())}
    delimiter = _choose_delimiter(first, usual)
    rows = _rows(lines, delimiter)
    header = [field.strip() for field in next(_rows([first], delimiter))[1]]
    is_named = columns is not None or not _IMAGE_NAME.match(header[0])
    if is_named:
        width = len(header)
        subject = f"{path}, a table with {_NAMES[delimiter]},"
        indices = _column_indices(
            header, choose_columns(header, columns, subject, text_columns), subject
        )
        next(row for row in rows if any(map(str.strip, row[1])))
    elif len(header) < 2:
        raise AnnotationError(
            f"{path} has one column; it should have an image and a {text_columns[0]} a line"
        )
    else:
        # Only Flickr30k's number of the caption may be between the two.
        width = 3 if len(header) == 3 and header[1].isdigit() else 2
        indices = {"image": 0, "caption": width - 1}
    for number, row in rows:
        location = f"{path}:{number}"
        if _ROW_START.search("|".join(row)):
            reason = "has quotes that enclose further rows; close or remove them"
            yield location, AnnotationError(f"{location} {reason}")
        elif len(row) == width and (is_named or width == 2 or row[1].strip().isdigit()):
            fields = {name: row[index].strip() for name, index in indices.items()}
            fields["image"] = _NUMBER_SUFFIX.sub("", fields["image"])
            yield location, fields
        elif any(map(str.strip, row)):
            reason = (
                f"has {len(row)} fields in place of {width}; put a {text_columns[0]} with {_NAMES[delimiter]} in "
                "quotes, and name further columns in the first line"
            )
            yield location, AnnotationError(f"{location} {reason}")


def _column_indices(header: Sequence[str], columns: Columns, subject: str) -> dict[str, int]:
    """Return the indices of image and text, and of the split if there is one."""
    names = dict(zip(("image", "caption"), columns, strict=True))
    if "split" in header:
        names["split"] = "split"
    for name in names.values():
        if header.count(name) > 1:
            raise AnnotationError(f"{subject} has the column {name} more than once; rename one")
    return {role: header.index(name) for role, name in names.items()}


def _choose_delimiter(first: str, usual: Collection[str]) -> str:
    """Return the delimiter that gives the first line usual column names, or else the most fields."""

    def suitability(delimiter: str) -> tuple[int, bool, int]:
        fields = [field.strip() for field in next(_rows([first], delimiter))[1]]
        num_known = sum(field.lower() in usual for field in fields)
        return num_known, len(fields) > 1 and bool(_IMAGE_NAME.match(fields[0])), len(fields)

    return max(_DELIMITERS, key=suitability)


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row with its line number.

    Quotes protect commas and semicolons. In files with tabs or bars they are mostly part of the caption; only a field
    that is wholly in quotes loses them.
    """
    if delimiter in ",;":
        reader = csv.reader(lines, delimiter=delimiter)
        for row in reader:
            yield reader.line_num, row
        return
    for number, line in enumerate(lines, start=1):
        yield number, [_unquote(field) for field in line.rstrip("\r\n").split(delimiter)]


def _unquote(field: str) -> str:
    text = field.strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') % 2 == 0:
        inner = text[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"')
    return field
