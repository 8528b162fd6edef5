"""LLaVA's question files as --questions: exactly their texts are asked, about their images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.benchmark import Item, Sources
from caldera.evaluation.benchmarks.registry import BENCHMARKS
from tests.evaluation.benchmarks.official import OFFICIAL

LLAVA_IDS: dict[str, Callable[[Item, int], object]] = {
    "pope": lambda item, number: 10_000_000 + number,
    "mme": lambda item, number: item.conversation.images[0],
    "seed-bench": lambda item, number: item.id,
    "vqav2": lambda item, number: int(item.id),
    "gqa": lambda item, number: item.id,
    "textvqa": lambda item, number: Path(item.conversation.images[0]).stem,
    "vizwiz": lambda item, number: number,
    "mm-vet": lambda item, number: int(item.id.removeprefix("v1_")),
}
"""Id of a question in LLaVA's file, by benchmark; the others have no such file, or only such."""

EACH = pytest.mark.parametrize("name", LLAVA_IDS)


def official_sources(name: str, folder: Path) -> Sources:
    """Return a benchmark's tiny official files without a file of questions."""
    sources = OFFICIAL[name](folder)
    return Sources(annotations=sources.annotations or sources.questions)


def llava_lines(name: str, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return LLaVA's lines about items in another order, with other spaces, and where LLaVA changes it another case."""
    lines = []
    for number, item in enumerate(items):
        text = item.conversation.turns[0].text.strip()
        if name not in ("pope", "mme"):
            text = text.swapcase()
        lines.append(
            {
                "question_id": LLAVA_IDS[name](item, number),
                "image": item.conversation.images[0],
                "text": text.replace("?", "? ", 1),
                "category": item.category if name == "pope" else "default",
            }
        )
    return lines[::-1]


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def official_and_lines(
    name: str, folder: Path
) -> tuple[Sources, Sequence[Item], list[dict[str, Any]]]:
    """Return a benchmark's official files, its items, and LLaVA's lines about them."""
    sources = official_sources(name, folder)
    # VQA v2's annotations have no questions, which are in a file of their own.
    with_questions = OFFICIAL[name](folder) if name == "vqav2" else sources
    official = BENCHMARKS[name].load(with_questions).items
    return sources, official, llava_lines(name, official)


@EACH
def test_exactly_the_texts_of_the_file_are_asked(name: str, tmp_path: Path) -> None:
    """Case and spaces are kept, the image comes first, and items keep their answers."""
    sources, official, lines = official_and_lines(name, tmp_path)
    spec = BENCHMARKS[name]
    path = write_lines(tmp_path / "llava.jsonl", lines)
    items = spec.load(replace(sources, questions=path)).items
    prompts = [
        (item.conversation.turns[0].images[0].path, item.conversation.turns[0].parts[1])
        for item in items
    ]
    assert sorted(prompts) == sorted((line["image"], f"\n{line['text']}") for line in lines)
    assert sorted(item.references for item in items) == sorted(item.references for item in official)
    if name != "pope":  # whose items have LLaVA's ids
        assert {item.id: item.references for item in items} == {
            item.id: item.references for item in official
        }


@EACH
def test_a_file_of_another_split_is_rejected(name: str, tmp_path: Path) -> None:
    """A question more or less than the official file has."""
    sources, _, lines = official_and_lines(name, tmp_path)
    path = write_lines(tmp_path / "llava.jsonl", lines[1:])
    with pytest.raises(InputError, match=r"differ in 1 questions|lacks|are not in .*llava\.jsonl"):
        BENCHMARKS[name].load(replace(sources, questions=path))


@pytest.mark.parametrize("name", ["pope", "mme", "seed-bench", "gqa", "textvqa", "mm-vet"])
def test_the_correct_answers_are_in_the_official_file(name: str, tmp_path: Path) -> None:
    """LLaVA's file alone is not enough; the message names the option of the official one."""
    sources = official_sources(name, tmp_path)
    lines = llava_lines(name, BENCHMARKS[name].load(sources).items)
    path = write_lines(tmp_path / "llava.jsonl", lines)
    with pytest.raises(UsageError, match="needs --annotations"):
        BENCHMARKS[name].load(Sources(questions=path))


@pytest.mark.parametrize("name", ["vqav2", "vizwiz"])
def test_test_splits_are_asked_from_the_file_alone(name: str, tmp_path: Path) -> None:
    """LLaVA evaluates splits whose answers are not public; their items have no references."""
    items = BENCHMARKS[name].load(OFFICIAL[name](tmp_path)).items
    path = write_lines(tmp_path / "llava.jsonl", llava_lines(name, items))
    unscored = BENCHMARKS[name].load(Sources(questions=path)).items
    assert {item.id for item in unscored} == {item.id for item in items}
    assert not any(item.references for item in unscored)
    lines = llava_lines(name, items)
    write_lines(path, [*lines, lines[0]])
    with pytest.raises(InputError, match="has questions more than once"):
        BENCHMARKS[name].load(Sources(questions=path))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """A line without a text, or without an image."""
    lines = [{"question_id": n, "image": f"{n}.jpg", "text": "?"} for n in range(2)]
    path = tmp_path / "llava.jsonl"
    for text in (" ", 3):
        write_lines(path, [lines[0], lines[1] | {"text": text}])
        with pytest.raises(InputError, match=r"llava\.jsonl\[1\]: image and text should be texts"):
            BENCHMARKS["vizwiz"].load(Sources(questions=path))
    write_lines(path, [lines[0], {"question_id": 1, "text": "?"}])
    with pytest.raises(InputError, match=r"llava\.jsonl\[1\] has no image"):
        BENCHMARKS["vizwiz"].load(Sources(questions=path))


@pytest.mark.parametrize(
    ("name", "field"), [("pope", "text"), ("pope", "image"), ("textvqa", "text")]
)
def test_a_field_of_another_type_is_named(name: str, field: str, tmp_path: Path) -> None:
    """POPE's and TextVQA's files are matched by their texts, so each must be one."""
    sources = official_sources(name, tmp_path)
    lines = llava_lines(name, BENCHMARKS[name].load(sources).items)
    for value in (None, ["a"], 3):
        path = write_lines(tmp_path / "llava.jsonl", [lines[0], lines[1] | {field: value}])
        with pytest.raises(InputError, match=rf"llava\.jsonl\[1\]: {field} should be a text"):
            BENCHMARKS[name].load(replace(sources, questions=path))


@pytest.mark.parametrize("name", ["mme", "seed-bench", "gqa", "vizwiz", "mm-vet"])
@pytest.mark.parametrize("text", ["", "[]", '{"question_id": 1, "image": "1.jpg"}\n'])
def test_a_file_that_would_not_be_asked_is_rejected(name: str, text: str, tmp_path: Path) -> None:
    """Next to the official file, --questions is LLaVA's file or an error: never ignored, never another prompt."""
    sources = official_sources(name, tmp_path)
    path = tmp_path / "llava.jsonl"
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"llava\.jsonl is not LLaVA's question file: its first line"
    ):
        BENCHMARKS[name].load(replace(sources, questions=path))
    same = replace(sources, questions=sources.annotations)
    assert BENCHMARKS[name].load(same).items == BENCHMARKS[name].load(sources).items
