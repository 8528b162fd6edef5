"""Parts of a message in the forms that clients send, converted to those of OpenAI's chat completions."""

from typing import Any

_TEXT_TYPES = ("text", "input_text", "output_text")
_IMAGE_TYPES = ("image_url", "input_image", "image")


def normalize_part(part: object) -> object:
    """Return a part as `text` or `image_url`; a part of another type, or without its content, is returned unchanged.

    Besides chat completions, these are the forms of OpenAI's Responses API (`input_text`, `output_text`, `input_image`,
    `refusal`), of Anthropic (`image` with a `source`), of LangChain and the Model Context Protocol (`image` with `url`,
    `base64` or `data`), and of transformers (`image` with `url` or `image`).

    Raises:
        ValueError: It is an image with no or several contents.
    """
    if not isinstance(part, dict):
        return part
    kind = part.get("type")
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind in _TEXT_TYPES:
        return {**part, "type": "text"}
    if kind in _IMAGE_TYPES:
        return {"type": "image_url", **_image_url(part)}
    return part


def _image_url(part: dict[str, Any]) -> dict[str, object]:
    """Return the field `image_url` of an image part, empty if the part of a type that has it lacks it."""
    contents = [
        {"url": content} if isinstance(content, str) else content
        for content in (part.get("image_url"), part.get("url"), part.get("image"), _data_url(part))
        if content is not None
    ]
    if len(contents) == 1:
        return {"image_url": contents[0]}
    if not contents and part["type"] != "image":
        return {}
    raise ValueError(
        "an image needs exactly one of image_url, url, image, source, base64 and data; files by id are not supported"
    )


def _data_url(part: dict[str, Any]) -> object:
    """Return the URL of an image whose base64 is in a field of its own; None if the part has none."""
    source = part.get("source")
    fields = source if isinstance(source, dict) else part
    data = fields.get("base64", fields.get("data"))
    if data is None:
        return source if source is None or isinstance(source, str) else fields.get("url", fields)
    media_types = (fields.get(name) for name in ("media_type", "mime_type", "mimeType"))
    media_type = next((name for name in media_types if isinstance(name, str)), "")
    if not isinstance(data, str) or data[:5].lower() == "data:":
        return data
    return f"data:{media_type};base64,{data}"
