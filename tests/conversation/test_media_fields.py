"""Fields that hold a medium make a record invalid; facts and empty values do not."""

import pytest

from caldera.conversation import from_record
from caldera.errors import ConversationError

NAN = float("nan")
TURNS = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": "A cat."}]


def read(ignore: str, **fields: object) -> None:
    """Read a record with fields."""
    from_record({"id": 1, "conversations": TURNS} | fields, "f:1", frozenset({ignore}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("video", "c.mp4"), ("videos", ["c.mp4"]), ("video", {"path": "c.mp4", "bytes": None}), ("video", 7),
        ("audio", "c.wav"), ("audios", ["c"]), ("speech", "x"), ("point_cloud", [[0.1, 0.2]]), ("pointcloud", "c.ply"),
        ("depth_map", "d.png"), ("data", "c.npy"), ("clip_path", "c"), ("frames", ["1.jpg"]), ("mask", "m.png"),
        ("thumbnail", "t.jpg"), ("second_image", "b.jpg"), ("pixel_values", [[1, 2]]), ("image_bytes", b"x"),
        ("extra", "data:image/png;base64,AAAA"), ("document", "a.pdf"), ("image_id", 7), ("video_id", "x"),
    ],
)  # fmt: skip
def test_a_field_of_a_medium_is_never_dropped(name: str, value: object) -> None:
    """Without another image the record would lose its subject; ignoring the field does not help a medium."""
    with pytest.raises(ConversationError, match=f"field '{name}' holds .*medium") as caught:
        read("", **{name: value})
    assert "--ignore-field" not in str(caught.value)
    if not name.endswith("_id"):
        with pytest.raises(ConversationError, match="the only medium of the record"):
            read(name, **{name: value})


@pytest.mark.parametrize("name", ["video", "audio", "mask", "second_image"])
def test_the_user_may_ignore_a_medium_beside_an_image(name: str) -> None:
    """The record keeps a subject; without the option it is invalid."""
    with pytest.raises(ConversationError, match="remove the record or the field"):
        read("", image="a.jpg", **{name: "b.png"})
    read(name, image="a.jpg", **{name: "b.png"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("video", None), ("videos", []), ("audio", ""), ("audio", {"path": None, "bytes": None}), ("video", False),
        ("image", NAN), ("video", [None, ""]), ("model", ""), ("id", NAN),
    ],
)  # fmt: skip
def test_an_empty_field_is_no_medium(name: str, value: object) -> None:
    """Tables of several kinds of records have such columns; nothing is lost with them."""
    read("", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_id", 7), ("video_id", "x"), ("image_width", 640), ("coco_url", "http://x.y/b.jpg"),
        ("image_url", "http://x.y/b.jpg"), ("original_image", "/data/a.jpg"), ("source", "coco"), ("num_images", 1),
        ("clip_score", 0.3), ("depth", 3), ("video_fps", 30),
    ],
)  # fmt: skip
def test_a_fact_about_the_image_is_an_unknown_field(name: str, value: object) -> None:
    """It may be ignored, as any other field, since the record has its image."""
    with pytest.raises(ConversationError, match=f"unknown field '{name}'.*--ignore-field {name}"):
        read("", image="a.jpg", **{name: value})
    read(name, image="a.jpg", **{name: value})


def test_all_unknown_fields_are_named_at_once() -> None:
    """One message has the options for all of them."""
    with pytest.raises(ConversationError, match="--ignore-field model --ignore-field source"):
        read("", source="x", model="y")
