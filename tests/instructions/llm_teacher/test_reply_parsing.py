"""Replies are read whole or refused by a named rule: LLaVA's own examples and GPT-4's answers come through unharmed."""

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.instructions.dialogues import Exchange, Kind
from caldera.instructions.llm_teacher.reply_parsing import parse_reply
from caldera.llm_client.client import RejectedReply
from tests.teacher_server import format_exchanges

FOLDERS: dict[Kind, str] = {
    "conversation": "conversation",
    "detail": "detail_description",
    "reasoning": "complex_reasoning",
}


def ask() -> str:
    """Give the question of a description."""
    return "What is there?"


def test_the_released_examples_are_read_without_loss(third_party: Path) -> None:
    """Eight replies of GPT-4 as LLaVA's authors kept them: written back, they are the same text."""
    turns = {}
    for kind, folder in FOLDERS.items():
        for file in sorted((third_party / "data_generation_examples" / folder).glob("*_conv.txt")):
            text = file.read_text().strip()
            read = parse_reply(kind, text, ask)
            if kind == "detail":
                assert read == [Exchange("What is there?", text)]
            else:
                assert format_exchanges(read) == text
            turns[kind, file.name] = len(read)
    assert len(turns) == 8
    assert [turns["reasoning", f"00{number}_conv.txt"] for number in range(3)] == [1, 1, 1]
    assert turns["conversation", "000_conv.txt"] == 4


def test_the_benchmarks_ninety_answers_come_through(third_party: Path) -> None:
    """Questions and answers of GPT-4, put in the reply's form and read back, are the same."""
    file = third_party / "llava_bench_coco" / "coco2014_val_gpt4_qa_30x3.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 90
    for row in rows:
        asked = Exchange(row["instruction"].strip(), row["output"].strip())
        kind: Kind = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}[
            row["type"]
        ]  # type: ignore[assignment]
        if kind == "detail":
            assert parse_reply(kind, asked.answer, lambda asked=asked: asked.question) == [asked]  # type: ignore[misc]
        else:
            assert parse_reply(kind, format_exchanges([asked]), ask) == [asked]


TEXT = (
    st.text(min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text not in ("", "==="))
)


@given(st.lists(st.builds(Exchange, TEXT, TEXT), min_size=1, max_size=5))
def test_whatever_is_written_in_the_form_is_read_back(exchanges: list[Exchange]) -> None:
    """Any line in any script, labels included, except === itself."""
    assert parse_reply("conversation", format_exchanges(exchanges), ask) == exchanges


def test_an_answer_keeps_its_colons_lists_and_blank_lines() -> None:
    """Only a whole line of === parts blocks; 'Answer:' within an answer is text."""
    answer = "Two things:\n\n1. a === b\n2. Answer: no\n\n- Question: why?"
    assert parse_reply("reasoning", f"Question: Why?\n ===\t\nAnswer:\n{answer}\n===\n", ask) == [
        Exchange("Why?", answer)
    ]


@pytest.mark.parametrize(
    "reply",
    ["问题：\n谁？\n===\n回答：\n一只猫。", "```text\nQuestion:\n谁？\n===\nAnswer: 一只猫。\n```"],
)
def test_labels_in_chinese_and_fences_are_understood(reply: str) -> None:
    """A reply as the Chinese prompts ask for it, and one that a teacher put in a fence."""
    assert parse_reply("conversation", reply, ask) == [Exchange("谁？", "一只猫。")]


@pytest.mark.parametrize(
    ("kind", "reply", "rule", "repairable"),
    [
        ("conversation", " \n", "empty reply", False),
        ("detail", "```\n\n```", "empty reply", False),
        ("conversation", "A dog.", "form", True),
        ("conversation", '{"question": "Who?", "answer": "A dog."}', "form", True),
        ("conversation", "Question:\nWho?", "form", True),
        ("conversation", "Answer:\nA dog.\n===\nQuestion:\nWho?", "form", True),
        ("conversation", "Question:\nWho?\n===\nAnswer:\nA\n===\nAnswer:\nB", "form", True),
        ("conversation", "Question:\nWho?\n===\nAnswer:\n", "empty answer", True),
        ("conversation", "Question:\n===\nAnswer:\nA dog.", "empty question", True),
        ("reasoning", "Question:\na\n===\nAnswer:\nb\n===\nQuestion:\nc\n===\nAnswer:\nd", "form", True),
        ("detail", "Question:\nWho?\n===\nAnswer:\nA dog.", "form", True),
        ("context", "<html>502</html>", "form", True),
    ],
)  # fmt: skip
def test_what_breaks_the_form_is_refused_by_name(
    kind: Kind, reply: str, rule: str, *, repairable: bool
) -> None:
    """The rule is named, and a teacher is told how to mend what can be mended."""
    with pytest.raises(RejectedReply) as refused:
        parse_reply(kind, reply, ask)
    assert refused.value.rule == rule
    assert bool(refused.value.repair) is repairable
    assert kind in get_args(Kind)
