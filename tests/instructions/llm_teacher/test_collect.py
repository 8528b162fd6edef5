"""Near duplicates are found, and few texts are compared for it."""

from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from caldera.conversation import read_conversations
from caldera.instructions.dialogues import Exchange
from caldera.instructions.llm_teacher.collect import NearDuplicateIndex
from tests.instructions.llm_teacher.runs import generate, read_lines, teacher_config
from tests.teacher_server import TeacherServer, completion, format_exchanges, good

TEXT = "A man in a red coat walks his two dogs through a park full of old trees while it snows."


def test_a_frequent_ngram_makes_no_candidates() -> None:
    """A 3-gram in all texts whose hash is small does not cause comparisons; near duplicates are found."""
    ngrams = (f"what stands {number}" for number in range(5000))
    frequent = min(ngrams, key=lambda ngram: crc32(ngram.encode()))
    index = NearDuplicateIndex()
    texts = [
        " ".join([frequent, *(f"word{number}x{position}" for position in range(40))])
        for number in range(300)
    ]
    for number, text in enumerate(texts):
        assert index.find(str(number), text) is None
    assert index.compared < 300
    duplicates = [index.find("again", f"{text} once more") for text in texts]
    assert duplicates == [str(number) for number in range(300)]


def test_near_duplicates_are_found_among_many_texts() -> None:
    """A text with another word or in another case is a near duplicate; short texts only if they are equal."""
    index = NearDuplicateIndex()
    assert index.find("a", TEXT) is None
    for number in range(200):
        text = f"Picture {number} shows {number * 7} things on {number * 3} tables."
        assert index.find(f"n{number}", text) is None
    assert index.find("b", TEXT.upper() + " Nice!") == "a"
    text = "A woman in a blue coat walks her cat over a bridge near old houses."
    assert index.find("c", text) is None
    assert index.find("d", "A red dog.") is None
    assert index.find("e", "A red dog!") == "d"
    assert index.find("f", "A red cat.") is None
    assert index.find("g", "公园里有两只狗在草地上奔跑玩耍") is None
    assert index.find("h", "公园里有两只狗在草地上奔跑玩耍。") == "g"


def test_near_duplicates_are_listed(
    tmp_path: Path, serve: Callable[..., TeacherServer], coco: Callable[[int], Path]
) -> None:
    """With the dialogue that they repeat; every dialogue is in one of the files, also after a second start."""
    same = completion(format_exchanges([Exchange("What is this?", "A red thing.")]))
    server = serve(lambda request, number: same if number in (1, 3, 4) else good(request))
    out, config = tmp_path / "data.json", teacher_config(coco(9), server.url)
    for _ in range(2):
        data = generate(config, out)
        assert data.rejected == {"reasoning: near-duplicate": 2}
        rejected = read_lines(out, "rejected.jsonl")
        written = [record.id for record in read_conversations(out)]
        assert {line["rule"] for line in rejected} == {"near-duplicate"}
        assert all(line["reason"].removeprefix("of ") in written for line in rejected)
        assert sorted([*written, *(line["id"] for line in rejected)]) == [
            f"{number:04}-reasoning" for number in range(9)
        ]
    assert server.count == 9
