"""Image marks of all dialects stand for the images of a record one to one, or the record is invalid."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.conversation import Conversation, ImageRef, from_record
from caldera.conversation.image_marks import DIALECTS, Dialect, split_marks
from caldera.conversation.reader import ConversationParser
from caldera.errors import ConversationError

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = [dialect for dialect in DIALECTS if dialect.kind != "media"]
NUMBERED = [dialect.example for dialect in DIALECTS if dialect.kind == "numbered"]
MEDIA = (
    "<video>", "<audio>", "<|video_pad|>", "<|vision_start|><|video_pad|><|vision_end|>", "<|audio_1|>",
    "<|audio_bos|><|AUDIO|><|audio_eos|>", "<video_1>", "<VideoHere>", "<speech>", "<point_cloud>", "[VIDEO]", "<bbox>",
)  # fmt: skip


def read(question: str, *images: str, answer: str = "A cat.") -> tuple[Conversation, list[str]]:
    """Return the conversation of a question about images, and the notes."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    notes: list[str] = []
    parser = ConversationParser(lambda image, _: image.path)
    return parser.parse({"images": list(images), "conversations": turns}, "f:1", notes), notes


@pytest.mark.parametrize("dialect", IMAGES, ids=lambda dialect: dialect.name)
def test_a_mark_of_each_dialect_is_the_image(dialect: Dialect) -> None:
    """One mark and one image: the image takes its place, and the translation is noted."""
    conversation, notes = read(f"Look: {dialect.example}\nWhat is it?", "cat.jpg")

    assert conversation.turns[0].parts == ("Look: ", ImageRef("cat.jpg"), "\nWhat is it?")
    is_own = dialect.example == "<image>"
    assert [note.endswith("read as <image>") for note in notes] == ([] if is_own else [True])


@pytest.mark.parametrize("dialect", IMAGES, ids=lambda dialect: dialect.name)
def test_a_mark_without_an_image_is_invalid_and_one_with_a_path_is_the_image(
    dialect: Dialect,
) -> None:
    """A record of several images, or of none, needs as many marks; a path names its image without a field."""
    with pytest.raises(ConversationError, match=r"f:1: has 1 .* but 2 image"):
        read(f"{dialect.example} what?", "cat.jpg", "dog.jpg")
    if dialect.kind == "path":
        assert read(f"{dialect.example} what?")[0].images == ("cat.jpg",)
        with pytest.raises(ConversationError, match=r"but 1 image\(s\) of other names"):
            read(f"{dialect.example} what?", "dog.jpg")
    else:
        with pytest.raises(ConversationError, match="but 0 image"):
            read(f"{dialect.example} what?")


@pytest.mark.parametrize("mark", MEDIA)
@pytest.mark.parametrize("images", [(), ("cat.jpg",)])
def test_a_mark_of_another_medium_is_invalid(mark: str, images: tuple[str, ...]) -> None:
    """Even beside an image, since the question is about the medium."""
    with pytest.raises(ConversationError, match="of a medium that is not read; remove the record"):
        read(f"{'<image>' * len(images)}{mark}\nWhat happens?", *images)


@pytest.mark.parametrize(
    "mark", ["<video>", "<|audio_1|>", "[VIDEO]", "[IMG]", "<Image>", "<|image_1|>", "![](cat.jpg)"]
)
def test_a_mark_that_is_only_mentioned_is_text(mark: str) -> None:
    """As code, in quotes, or as the name of a tag, without an image and with one."""
    for text in (
        f"Explain `{mark}`.",
        f"Explain:\n```\na {mark}\n```",
        f'What is "{mark}"?',
        f"Is {mark} tag old?",
    ):
        assert read(text)[0].turns[0].parts == (text,)
        assert read(f"<image>{text}", "cat.jpg")[0].turns[0].parts == (ImageRef("cat.jpg"), text)


@pytest.mark.parametrize(
    "text",
    [
        "Is a < b > c, [x] or {y} & z?",
        "<imageView> <image_name> <images_dir>",
        "![badge](https://img.shields.io/build.svg)",
        '<div><img src="logo.png"></div>',
        '<video controls><source src="a.mp4"></video>',
        "<video><source src='a.mp4'></video>",
        "Picture 1 and Image-2.",
    ],
)
def test_text_that_holds_no_mark_is_kept(text: str) -> None:
    """Comparisons, code and badges are text."""
    assert read(text)[0].turns[0].parts == (text,)


@pytest.mark.parametrize(
    ("question", "images", "order"),
    [
        ("<|image_2|> or <|image_1|>?", "ab", "ba"),
        ("<image_0> or <image_1>?", "ab", "ab"),
        ("<image> or <Image>?", "ab", "ab"),
        ("<img>b</img> or <img>a</img>?", "ab", "ba"),
        ("<img>/x/b</img> or <image>?", "ab", "ba"),
        ("Picture 1: <img>a</img>\nPicture 2: <img>b</img>", "", "ab"),
        ("<image><image> Is <image_1> larger than <image_2>?", "ab", "ab"),
        ("Which?", "ab", "ab"),
        ("<image_1> or <image_1>?", "ab", None),
        ("<image_1> or <image_3>?", "ab", None),
        ("<image> or <image_2>?", "a", None),
        ("<image> [IMG]", "a", None),
        ("![](https://x.y/a.png) <image>", "a", None),
    ],
)
def test_marks_and_images_fit_one_to_one(question: str, images: str, order: str | None) -> None:
    """By number, by name, in order, or all before a question without a mark; any other number is invalid."""
    if order is None:
        with pytest.raises(ConversationError):
            read(question, *images)
    else:
        assert "".join(read(question, *images)[0].images) == order


def test_the_keys_of_an_image_object_are_its_marks() -> None:
    """MiniCPM-V names its images so; a key that is missing in the text is an error."""
    images = {"<image_00>": "a.jpg", "<image_01>": "b.jpg"}
    turns = [
        {"role": "user", "content": "<image_01> or <image_00>?"},
        {"role": "assistant", "content": "b"},
    ]
    record = {"image": images, "conversations": turns}
    assert from_record(record, "f").images == ("b.jpg", "a.jpg")
    turns[0]["content"] = "<image_01>?"
    with pytest.raises(ConversationError, match="has 1 image mark"):
        from_record(record, "f")


@pytest.mark.parametrize(
    "mark", ["<image:0>", "<|img|>", "<img_start>", "<|endofimage|>", "<im_patch>"]
)
def test_a_mark_that_is_not_known_is_no_word_of_a_question(mark: str) -> None:
    """Without another mark of the image it is an error; in code, or beside a mark, it is text."""
    with pytest.raises(ConversationError, match="no known mark of its image"):
        read(f"{mark}What?", "a")
    for question in (f"What is `{mark}`?", f"<image>What is {mark}?"):
        assert mark in read(question, "a")[0].turns[0].text
    assert read(f"What is {mark}?")[1] == []


def test_a_mark_in_an_answer_is_text_unless_it_is_the_only_one() -> None:
    """Counted and told; an image that only an answer shows would be learned as an input."""
    conversation, notes = read("<image>Parse it.", "a", answer="![fig 3](<image>)")
    assert conversation.turns[1].text == "![fig 3](<image>)"
    assert notes == ["<image> in an answer kept as text"]
    assert read("<image>Where?", "a", answer="In <|image_1|>.")[1] == [
        "mark '<|image_1|>' in an answer kept as text"
    ]
    for mark in ("<image>", "<|image_1|>", "[IMG]"):
        with pytest.raises(ConversationError, match="of its image in an answer"):
            read("Draw a cat.", "a", answer=mark)
    with pytest.raises(ConversationError, match="in place of boxes"):
        read("<image>Where?", "a", answer="There: <bbox>.")


@given(
    st.lists(
        st.sampled_from([dialect.example for dialect in DIALECTS] + ["text ", "\n", "<image>"]),
        max_size=5,
    ),
    st.lists(st.sampled_from(["cat.jpg", "dog.jpg", "/x/cat.jpg"]), max_size=4),
    st.booleans(),
)
def test_a_record_never_loses_an_image(pieces: list[str], images: list[str], later: bool) -> None:
    """Whatever marks its questions have, a valid record shows every image that was given, and no mark is left over."""
    question = "".join(pieces) or "what?"
    first, second = ("hello", question) if later else (question, "and?")
    turns = [
        {"from": ("human", "gpt")[number % 2], "value": text}
        for number, text in enumerate((first, "x", second, "y"))
    ]
    try:
        conversation = from_record({"id": 1, "image": images, "conversations": turns}, "f")
    except ConversationError:
        return
    assert not set(images) - set(conversation.images)
    num_marks = sum(piece not in ("text ", "\n", *NUMBERED) for piece in pieces)
    assert len(conversation.images) >= max(len(images), num_marks)


@pytest.mark.parametrize(
    "text",
    [
        "![" * 30_000, "<image>" + " " * 30_000, "<video" + "1" * 30_000, "<video" + "_1" * 30_000 + "x",
        "<img " * 30_000,
        "<img src=" + "a" * 30_000, "![](" + "a." * 30_000, "<img>" + "a" * 30_000, "<image_" + "1" * 5_000 + ">",
        "<|image_pad|>" * 5_000, "`" * 30_000, "```" * 10_000, "[img]" * 10_000, "<IMG_CONTEXT>" * 3_000 + "x",
    ],
)  # fmt: skip
def test_a_long_text_takes_linear_time(text: str) -> None:
    """No text of a data file makes the search for marks run for minutes, or fail otherwise."""
    start = time.process_time()
    split_marks(text)
    assert time.process_time() - start < 2


def test_the_docs_list_every_dialect() -> None:
    """The table of docs/data.md has the example of each."""
    text = (DOCS / "data.md").read_text().replace("\\|", "|")
    assert [d.name for d in DIALECTS if f"`{d.example}`" not in text] == []


PARTS = st.sampled_from(
    [
        {"type": "image"},
        {"type": "image", "image": "cat.jpg"},
        {"type": "image", "index": 1},
        {"type": "image_url", "image_url": {"url": "dog.jpg"}},
        {"type": "text", "text": "what?"},
        *({"type": "text", "text": dialect.example} for dialect in DIALECTS),
    ]
)


@given(
    st.lists(PARTS, max_size=4),
    st.lists(st.sampled_from(["cat.jpg", "dog.jpg"]), max_size=3),
    st.lists(st.sampled_from(["cat.jpg", "bird.jpg"]), max_size=2),
)
def test_a_message_never_loses_an_image(
    parts: list[dict[str, object]], images: list[str], local: list[str]
) -> None:
    """Images of the record, of the message and of its parts are all shown, each as often as it was given."""
    message = {"role": "user", "content": parts or "what?", "images": local}
    record = {"messages": [message, {"role": "assistant", "content": "x"}], "images": images}
    try:
        read_paths = from_record(record, "f").images
    except ConversationError:
        return
    part_paths = [str(part["image"]) for part in parts if "image" in part]
    part_paths += ["dog.jpg" for part in parts if "image_url" in part]
    for expected_paths in (images, local, part_paths):
        assert all(read_paths.count(path) >= expected_paths.count(path) for path in expected_paths)
