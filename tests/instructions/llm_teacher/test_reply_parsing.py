"""Replies are parsed without loss or rejected by a named rule; LLaVA's examples and GPT-4's answers are parsed."""

import json
from functools import partial
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


def pick_question() -> str:
    """Return the question of a description."""
    return "What is there?"


def test_the_released_examples_are_parsed_without_loss(third_party: Path) -> None:
    """Eight replies of GPT-4 that LLaVA's authors selected: formatted again, they are the same text."""
    turns = {}
    for kind, folder in FOLDERS.items():
        for file in sorted((third_party / "data_generation_examples" / folder).glob("*_conv.txt")):
            text = file.read_text().strip()
            exchanges = parse_reply(kind, text, pick_question)
            if kind == "detail":
                assert exchanges == [Exchange("What is there?", text)]
            else:
                assert format_exchanges(exchanges) == text
            turns[kind, file.name] = len(exchanges)
    assert len(turns) == 8
    assert [turns["reasoning", f"00{number}_conv.txt"] for number in range(3)] == [1, 1, 1]
    assert turns["conversation", "000_conv.txt"] == 4


def test_the_benchmarks_ninety_answers_are_parsed(third_party: Path) -> None:
    """Questions and answers of GPT-4, formatted as replies and parsed, are the same."""
    file = third_party / "llava_bench_coco" / "coco2014_val_gpt4_qa_30x3.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 90
    kinds: dict[str, Kind] = {"conv": "conversation", "detail": "detail", "complex": "reasoning"}
    for record in records:
        exchange = Exchange(record["instruction"].strip(), record["output"].strip())
        kind = kinds[record["type"]]
        reply = exchange.answer if kind == "detail" else format_exchanges([exchange])
        assert parse_reply(kind, reply, partial(str, exchange.question)) == [exchange]


TEXT = (
    st.text(min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text not in ("", "==="))
)


@given(st.lists(st.builds(Exchange, TEXT, TEXT), min_size=1, max_size=5))
def test_formatted_exchanges_are_parsed_back(exchanges: list[Exchange]) -> None:
    """Any line in any script, labels included, except === itself."""
    assert parse_reply("conversation", format_exchanges(exchanges), pick_question) == exchanges


def test_an_answer_may_contain_colons_lists_and_blank_lines() -> None:
    """Only a whole line of === separates blocks; 'Answer:' within an answer is text."""
    answer = "Two things:\n\n1. a === b\n2. Answer: no\n\n- Question: why?"
    assert parse_reply(
        "reasoning", f"Question: Why?\n ===\t\nAnswer:\n{answer}\n===\n", pick_question
    ) == [Exchange("Why?", answer)]


@pytest.mark.parametrize(
    "reply",
    ["问题：\n谁？\n===\n回答：\n一只猫。", "```text\nQuestion:\n谁？\n===\nAnswer: 一只猫。\n```"],
)
def test_chinese_labels_and_fences_are_parsed(reply: str) -> None:
    """A reply in the format of the Chinese prompts, and one in a code fence."""
    assert parse_reply("conversation", reply, pick_question) == [Exchange("谁？", "一只猫。")]


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
def test_malformed_replies_are_rejected_by_name(
    kind: Kind, reply: str, rule: str, *, repairable: bool
) -> None:
    """The rejection names the rule, and has feedback if a repair may help."""
    with pytest.raises(RejectedReply) as caught:
        parse_reply(kind, reply, pick_question)
    assert caught.value.rule == rule
    assert bool(caught.value.feedback) is repairable
    assert kind in get_args(Kind)
