"""A run folder that version 0.1 wrote is read, compared, scored and resumed.

`stored_run_0_1` was written by that version's code; only the absolute path of its images was replaced.
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.evaluation.annotation_questions import ExactMatch
from caldera.evaluation.answer_files import read_answers
from caldera.evaluation.answerers.answerer import Answer, OnAnswers, PreparedItem
from caldera.evaluation.benchmark import Item, Score
from caldera.evaluation.runs.report import compare_runs, read_run, write_run_report
from caldera.evaluation.runs.results import BenchmarkInfo, Results, with_current_keys
from caldera.evaluation.runs.run import evaluate

STORED = Path(__file__).parent / "stored_run_0_1"


def question(number: int, choices: tuple[str, ...] = ()) -> Item:
    """Return a question of the stored run."""
    parts = (ImageRef(f"{number % 2}.png"), f"\nwhat color is image {number}?")
    return Item(
        f"q{number}",
        "shape" if number == 3 else "color",
        "what",
        Conversation(f"q{number}", (Turn("user", parts),)),
        ("B",) if choices else (("red", "blue")[number % 2],),
        choices,
        (f"half {number // 2}",),
    )


@dataclass(frozen=True)
class ColorQuestions(ExactMatch):
    """The benchmark of the stored run: one answer cannot be parsed."""

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score answers by item id."""
        return replace(super().score(answers), unparsed={"q3": "no color in it"})


class StoredAnswerer:
    """The answerer of the stored run; it answers `text` and records what it is asked."""

    identity: Mapping[str, str] = {
        "model": "a model",
        "temperature": "0.0",
        "choice_method": "generation",
        "batch_size": "4",
    }
    model_info: Mapping[str, str] = {"stage": "finetune"}
    deterministic = True
    batched = True

    def __init__(self, text: str) -> None:
        self.text = text
        self.asked_ids: list[str] = []

    def prepare(self, item: Item, folder: Path, image_digests: Sequence[str]) -> PreparedItem:
        """Build the prompt of an item."""
        return PreparedItem(item, folder, "USER: " + item.conversation.turns[-1].text)

    def ask(
        self,
        items: Sequence[PreparedItem],
        answered: Collection[str],
        on_answers: OnAnswers,
        *,
        max_new_tokens: int,
    ) -> None:
        """Answer all items that have no answer yet."""
        self.asked_ids = [item.item.id for item in items if item.item.id not in answered]
        on_answers([Answer(item_id, self.text) for item_id in self.asked_ids])


def run(out: Path, text: str) -> tuple[Results, list[str]]:
    """Start or resume the stored run in a folder; return the results and the ids that were asked."""
    items = (question(0), question(1), question(2, ("blue", "red")), question(3), question(4))
    info = BenchmarkInfo(
        title="Stored run", measures="colors", primary_metric="accuracy", chance={"accuracy": 50.0}
    )
    answerer = StoredAnswerer(text)
    folder = STORED / "images"
    benchmark = ColorQuestions("stored", items)
    results = evaluate(benchmark, answerer, folder=folder, out=out, info=info)
    return results, answerer.asked_ids


def test_a_stored_run_is_read() -> None:
    """Results and items have the current names."""
    stored = read_run(STORED / "run")
    assert stored.results["images"] == "images"
    assert stored.results["counts"]["unparsed"] == 1
    assert stored.results["unparsed"] == {"q3": "no color in it"}
    states = [item.state for item in stored.items]
    assert states == ["right", "wrong", "right", "unparsed", "failed"]
    first, _, choice, *_ = stored.items
    assert (first.score, first.images, first.prompt) == (
        1.0,
        ["0.png"],
        "USER: \nwhat color is image 0?",
    )
    assert choice.option_log_likelihoods == [[-3.5, 2], [-1.25, 1]]


def test_a_stored_run_is_compared_with_a_new_one(tmp_path: Path) -> None:
    """Both answered the same data, although the fields of items have other names now."""
    run(tmp_path / "new", "blue")
    stored, new = read_run(STORED / "run"), read_run(tmp_path / "new")
    data = [results.results["provenance"]["data"]["digest"] for results in (stored, new)]
    assert data[0] == data[1]
    [comparison] = compare_runs([stored, new])
    assert (comparison.all.wins, comparison.all.losses) == (2, 2)
    write_run_report(tmp_path / "comparison.html", [stored, new])
    assert "no color in it" in (tmp_path / "comparison.html").read_text()


def test_stored_answers_are_scored_again(tmp_path: Path) -> None:
    """`caldera evaluate score` and `judge` read the answered items of answers.jsonl as an answer file."""
    lines = (STORED / "run" / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:4]))
    answers = read_answers(tmp_path / "answers.jsonl")
    assert answers == {"q0": "red", "q1": "green", "q2": "B", "q3": "hm"}


def test_a_stored_run_resumes(tmp_path: Path) -> None:
    """Only the failed item is asked; cached answers keep their likelihoods and model."""
    shutil.copytree(STORED / "run", tmp_path / "run")
    results, asked_ids = run(tmp_path / "run", "red")
    assert asked_ids == ["q4"]
    assert results["valid"]
    assert results["figures"] == {"accuracy": 60.0}
    assert results["provenance"]["answered by"] == "little-model"
    old, new = (read_run(folder).items for folder in (STORED / "run", tmp_path / "run"))
    assert new[:4] == old[:4]
    assert (new[4].answer, new[4].state) == ("red", "right")
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["answers"]) for line in lines] == [4, 1]


@pytest.mark.parametrize("group", ["overall", "kinds", "slices"])
def test_former_keys_of_groups_are_renamed(group: str) -> None:
    """Names of categories are not keys, and stay."""
    old = {"mean_mark": {"value": 0.5}}
    nested = {"unread": old} if group != "overall" else old
    new = {"mean_score": {"value": 0.5}}
    expected = {"unread": new} if group != "overall" else new
    assert with_current_keys({group: json.loads(json.dumps(nested))}) == {group: expected}
