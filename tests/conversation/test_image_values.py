"""Images as records name them, and their files on another machine."""

import base64
from pathlib import Path

import pytest

from caldera.conversation.image_values import (
    ImageLocator,
    ImageSource,
    inline_image_bytes,
    parse_images,
    parse_images_from,
)
from caldera.errors import ConversationError, UsageError

JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + b"x" * 99).decode()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("file:///d/a%20b.jpg", "/d/a b.jpg"),
        ("file://localhost/d/a.jpg", "/d/a.jpg"),
        ("file:a.jpg", "a.jpg"),
        ("file:///C:/a.jpg", "C:/a.jpg"),
        ({"path": "a.jpg", "bytes": None}, "a.jpg"),
        ({"url": "a.jpg", "detail": "low"}, "a.jpg"),
        ({"image_url": {"url": "a.jpg"}}, "a.jpg"),
    ],
)
def test_a_path_has_many_forms(value: object, path: str) -> None:
    """Alone or in a list: paths, file: URLs, and the objects of APIs and the datasets library."""
    assert parse_images(value) == [ImageSource(path)]
    assert parse_images([value, value]) == [ImageSource(path)] * 2


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/jpeg;base64,{JPEG}",
        JPEG,
        b"\xff\xd8\xff\xe0" + b"x" * 99,
        {"bytes": b"\xff\xd8\xff\xe0" + b"x" * 99, "path": "a.jpg"},
        {"type": "base64", "media_type": "image/jpeg", "data": JPEG},
        {"source": {"type": "base64", "data": JPEG.rstrip("=")}},
        JPEG.replace("/", "_"),
    ],
)
def test_an_image_in_the_record_is_found_in_any_form(value: object) -> None:
    """As a data: URL, base64 (also URL-safe or without padding), or bytes: the same bytes."""
    if value == JPEG.replace("/", "_"):
        value = {"base64": value}
    [image] = parse_images(value)
    assert image.content is not None
    assert inline_image_bytes(image.content) == b"\xff\xd8\xff\xe0" + b"x" * 99


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a.jpg", None], "got None"),
        ([["a.jpg"]], "got \\['a.jpg'\\]"),
        ({"bytes": "x"}, "should be a path or a list of paths"),
        (3, "got 3"),
        ("https://x.y/a.jpg", "https: URL, which is not fetched; download it"),
        ("s3://x/a.jpg", "s3: URL"),
        ({"url": "http://x.y/a.jpg"}, "http: URL"),
    ],
)
def test_another_value_is_an_error(value: object, message: str) -> None:
    """Nothing is fetched or guessed."""
    with pytest.raises(ConversationError, match=message):
        parse_images(value)


@pytest.mark.parametrize("text", ["data:image/png,abc", "data:image/png;base64", "/9j/!!!!"])
def test_broken_base64_is_an_error_that_cuts_it(text: str) -> None:
    """A message never repeats hundreds of kilobytes."""
    with pytest.raises(
        ConversationError, match=r"data: URL without base64|broken base64"
    ) as caught:
        inline_image_bytes(text + "!" * 400_000)
    assert len(str(caught.value)) < 200


def locate(folder: Path, path: str, *images_from: str) -> tuple[str, list[str]]:
    """Return the path of an image, and the notes."""
    notes: list[str] = []
    return ImageLocator(folder, parse_images_from(images_from)).locate(path, notes), notes


def test_paths_of_another_machine_are_found(tmp_path: Path) -> None:
    """By the longest end that exists, which is noted, or by the folder's new place; a backslash is a separator."""
    for name in ("coco/train/1.jpg", "train/1.jpg", "1.jpg", "new/coco/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    guess = ["image found by the end of its absolute path"]

    assert locate(tmp_path, "/data/coco/train/1.jpg") == ("coco/train/1.jpg", guess)
    assert locate(tmp_path, "C:\\data\\train\\1.jpg") == ("train/1.jpg", guess)
    assert locate(tmp_path, "/x/nowhere/1.jpg") == ("1.jpg", guess)
    assert locate(tmp_path, "/x/2.jpg") == ("/x/2.jpg", [])
    assert locate(tmp_path, str(tmp_path / "1.jpg")) == (str(tmp_path / "1.jpg"), [])
    assert locate(tmp_path, "coco\\train\\1.jpg") == ("coco/train/1.jpg", [])
    assert locate(tmp_path, "nowhere/1.jpg") == ("nowhere/1.jpg", [])
    new = f"/data={tmp_path / 'new'}"
    assert locate(tmp_path, "/data/coco/1.jpg", new) == (str(tmp_path / "new/coco/1.jpg"), [])
    assert locate(tmp_path, "/database/1.jpg", new) == ("1.jpg", guess)


def test_a_file_name_with_a_backslash_is_kept(tmp_path: Path) -> None:
    """If the file exists, it is the one meant."""
    (tmp_path / "a\\b.jpg").touch()
    assert locate(tmp_path, "a\\b.jpg") == ("a\\b.jpg", [])


def test_two_images_do_not_become_one(tmp_path: Path) -> None:
    """Two folders of another machine with the same names cannot be told apart by the names."""
    (tmp_path / "1.jpg").touch()
    locator = ImageLocator(tmp_path)
    assert locator.locate("/data/train/1.jpg", []) == "1.jpg"
    assert locator.locate("/data/train/1.jpg", []) == "1.jpg"
    with pytest.raises(
        ConversationError, match=r"would both be .*name the folders with --images-f"
    ):
        locator.locate("/data/val/1.jpg", [])


@pytest.mark.parametrize("text", ["/data", "=x", "/data="])
def test_images_from_needs_both_folders(text: str) -> None:
    """The error shows the form."""
    with pytest.raises(UsageError, match="write OLD=NEW"):
        parse_images_from([text])
