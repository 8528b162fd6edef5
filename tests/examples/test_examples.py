"""The scripts of examples/ run from a command line, on a demo of the smallest size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_docs import SMALLEST

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


def run(script: str, *arguments: str | Path) -> str:
    """Run an example in a process of its own and return what it prints."""
    command = [sys.executable, EXAMPLES / script, *arguments]
    environment = os.environ | {"CALDERA_DEBUG": "1"}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the demo after two steps of each stage."""
    folder = tmp_path_factory.mktemp("demo")
    settings = [word for setting in SMALLEST for word in ("--set", setting)]
    command = [sys.executable, "-m", "caldera", "demo", "--out", str(folder), *settings]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def scene(demo: Path) -> Path:
    """Return an image of the demo."""
    return demo / "scenes" / "held_out" / "held_out" / "000001.jpg"


def test_every_example_is_tested() -> None:
    """No script is without a test here."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "chat.py", "train_on_your_images.py", "serve_and_ask.py", "score_answers.py", "add_a_projector.py",
    }  # fmt: skip


def test_chat_prints_an_answer_for_each_way_of_asking(demo: Path) -> None:
    """One answer, one stream, two turns and a batch of two."""
    lines = run("chat.py", demo / "model", scene(demo)).splitlines()
    assert len(lines) >= 5
    assert lines[-1][0] + lines[-1][-1] == "[]"


def test_serve_and_ask_prints_an_answer(demo: Path, loopback: None) -> None:
    """The openai client gets a completion from a real server."""
    assert run("serve_and_ask.py", demo / "model", scene(demo)).strip()


def test_a_csv_file_becomes_a_model(tmp_path: Path, demo: Path) -> None:
    """Captions of your images go through data, both stages and into a model folder."""
    image = (tmp_path / "one.jpg").write_bytes(scene(demo).read_bytes())
    assert image
    rows = "".join(
        f"one.jpg,A drawn scene with a dog number {number} on a street.\n" for number in range(8)
    )
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    out = run(
        "train_on_your_images.py", tmp_path / "captions.csv", tmp_path / "run",
        "--set", "max_steps=2", "--set", "batch_size=2",
    )  # fmt: skip
    assert "chat with it" in out
    assert (tmp_path / "run" / "stage2" / "model" / "caldera.json").is_file()


def test_answers_to_own_questions_are_scored(tmp_path: Path) -> None:
    """Two of three answers are correct."""
    questions = [
        {"id": str(number), "question": "What is missing?", "answer": ["tea"], "match": "contains"}
        for number in range(3)
    ]
    answers = [
        {"question_id": str(number), "text": text}
        for number, text in enumerate(("Tea.", "the tea", "milk"))
    ]
    for name, records in (("questions", questions), ("answers", answers)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(record) + "\n" for record in records)
        )
    scores = json.loads(
        run("score_answers.py", tmp_path / "questions.jsonl", tmp_path / "answers.jsonl")
    )
    assert scores["accuracy"] == pytest.approx(100 * 2 / 3)


def test_a_new_projector_trains(tmp_path: Path, demo: Path) -> None:
    """The registered class is trained, saved under its name, and found in the folder."""
    captions = tmp_path / "captions.json"
    command = [
        "data",
        "generate",
        "coco",
        str(demo / "scenes" / "train"),
        "--kinds",
        "caption",
        "--out",
        str(captions),
    ]
    subprocess.run([sys.executable, "-m", "caldera", *command], check=True, capture_output=True)
    out = tmp_path / "run"
    run("add_a_projector.py", captions, out, "--set", "max_steps=2", "--set", "batch_size=4")
    assert json.loads((out / "model" / "caldera.json").read_text())["projector"] == "normalized"
