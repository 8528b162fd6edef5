"""Tests of the forms of message parts that clients send."""

import pytest

from caldera.server.api.content_parts import normalize_part

DATA = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x"},
        {"type": "input_text", "text": "x"},
        {"type": "output_text", "text": "x", "annotations": []},
        {"type": "refusal", "refusal": "x"},
    ],
)
def test_every_form_of_text_is_text(part: dict[str, object]) -> None:
    """Of chat completions, of the Responses API, and of refused answers in a history."""
    normalized = normalize_part(part)
    assert isinstance(normalized, dict)
    assert (normalized["type"], normalized["text"]) == ("text", "x")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA}},
        {"type": "image_url", "image_url": {"url": DATA, "detail": "original"}},
        {"type": "image_url", "image_url": DATA},
        {"type": "image_url", "url": DATA},
        {"type": "input_image", "image_url": DATA, "detail": "auto", "file_id": None},
        {"type": "image", "url": DATA},
        {"type": "image", "image": DATA},
        {"type": "image", "image_url": DATA},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
        {"type": "image", "source": {"type": "url", "url": DATA}},
        {"type": "image", "source_type": "base64", "mime_type": "image/png", "data": "AAAA"},
        {"type": "image", "source_type": "url", "url": DATA},
        {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
        {"type": "image", "data": "AAAA", "mimeType": "image/png"},
        {"type": "image", "data": DATA},
    ],
)
def test_every_form_of_an_image_is_an_image(part: dict[str, object]) -> None:
    """Of OpenAI, Anthropic, LangChain, the Model Context Protocol and transformers."""
    normalized = normalize_part(part)
    assert isinstance(normalized, dict)
    assert normalized["type"] == "image_url"
    assert normalized["image_url"]["url"] == DATA


def test_base64_without_a_media_type_is_a_data_url_without_one() -> None:
    """The content decides the format."""
    expected = {"type": "image_url", "image_url": {"url": "data:;base64,AAAA"}}
    assert normalize_part({"type": "image", "data": "AAAA"}) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "image", "url": DATA, "image": DATA},
        {"type": "image_url", "image_url": DATA, "data": "AAAA"},
    ],
)
def test_an_image_with_no_or_several_contents_is_an_error(part: dict[str, object]) -> None:
    """None is guessed, and no path of the server is read."""
    with pytest.raises(ValueError, match="exactly one of image_url, url, image, source"):
        normalize_part(part)


@pytest.mark.parametrize("part", [7, "x", [], {}, {"type": ["text"]}, {"type": "file", "file": {}}])
def test_anything_else_is_unchanged(part: object) -> None:
    """The schema reports it."""
    assert normalize_part(part) is part
