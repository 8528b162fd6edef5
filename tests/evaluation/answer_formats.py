"""Answer files of other toolkits about small benchmarks, as those toolkits write them."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def write_table(path: Path, rows: Sequence[Row], delimiter: str = ",") -> Path:
    """Write rows as a text table, or as a spreadsheet if the file is one."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if path.suffix == ".xlsx":
        from openpyxl import Workbook

        book = Workbook()
        sheet = book.active
        assert sheet is not None
        sheet.append(columns)
        for row in rows:
            sheet.append([row.get(column) for column in columns])
        book.save(path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, records: Sequence[Row]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    return path


def write_json(path: Path, value: object) -> Path:
    """Write one JSON value over several lines."""
    path.write_text(json.dumps(value, indent=1), "utf-8")
    return path


def sample(number: int, doc: Row, reply: str, target: str = "") -> dict[str, Any]:
    """Return a sample as lmms-eval logs it."""
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": [["a prompt", {"max_new_tokens": 16}]],
        "resps": [[f" {reply} "]],
        "filtered_resps": [reply],
        "doc_hash": "74e0",
        "a_metric": {"question_id": "x", "score": 1.0, "prediction": "other", "answer": "other"},
    }
