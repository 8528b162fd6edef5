"""Small files of data sets on the Hub: LLaVA's JSON, and parquet with images."""

import json
from io import BytesIO

import pyarrow
import pyarrow.parquet
from PIL import Image


def image_bytes(color: int) -> bytes:
    """Return a small PNG file."""
    stream = BytesIO()
    Image.new("RGB", (6, 5), (color, 9, 99)).save(stream, "png")
    return stream.getvalue()


def records(*names: str) -> bytes:
    """Return LLaVA's JSON of one record for each image."""
    return json.dumps(
        [
            {
                "id": name,
                "image": name,
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat is it?"},
                    {"from": "gpt", "value": f"It is {name}."},
                ],
            }
            for name in names
        ]
    ).encode()


def table(*answers: str) -> bytes:
    """Return a parquet file with an Image feature, as the `datasets` library writes it."""
    rows = [
        {
            "images": [{"bytes": image_bytes(10 * index), "path": None}],
            "texts": [{"user": "What is it?", "assistant": answer, "source": "own"}],
        }
        for index, answer in enumerate(answers)
    ]
    features = {"info": {"features": {"images": [{"_type": "Image"}]}}}
    stream = BytesIO()
    content = pyarrow.Table.from_pylist(rows).replace_schema_metadata(
        {"huggingface": json.dumps(features)}
    )
    pyarrow.parquet.write_table(content, stream)
    return stream.getvalue()
