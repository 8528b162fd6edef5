"""lmms-eval finds caldera's models by name, and gets the same answers from them as caldera's own inference."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UnknownNameError, UsageError
from caldera.export.parity.sample_images import draw_cases
from caldera.formats.model_folder import save_model_folder
from caldera.inference.likelihood import LikelihoodScorer
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from tests.engine_answers import generate

pytestmark = [
    pytest.mark.reference,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None,
        reason="lmms-eval is not installed; pip install 'caldera[lmms]'",
    ),
]

OPEN = """
task: drawn_open
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data} }} }}
test_split: test
output_type: generate_until
doc_to_visual: !function documents.images
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 7, temperature: 0, do_sample: false, num_beams: 1, until: ["{stop}"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
"""

CHOICE = """
task: drawn_choice
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data} }} }}
test_split: test
output_type: multiple_choice
doc_to_visual: !function documents.images
doc_to_text: question
doc_to_choice: choices
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

DOCUMENTS = '''
"""Images of the documents."""


def images(document):
    """Return its images."""
    return document["images"]
'''

CHOICES = ["a dog", "two cats on the left", "meadow"]

Part = str | int
"""Text, or the number of an image of the document."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the tasks, with the expected parts of its question."""

    question: str
    images: tuple[int, ...]
    parts: tuple[Part, ...]


TASK_DOCUMENTS = (
    *(Document("What do you see?", (number,), (0, "\nWhat do you see?")) for number in range(4)),
    Document("Is there a dog in both?", (4, 5), (0, " ", 1, "\nIs there a dog in both?")),
    Document("A: <image> B: <image> How many?", (6, 7), ("A: ", 0, " B: ", 1, " How many?")),
    Document("Where is it? <image>", (8,), ("Where is it? ", 0)),
    Document("What is a bird?", (), ("What is a bird?",)),
)
"""One image before the question, several, some in the middle of it, none."""


@pytest.fixture
def scenes(tmp_path: Path) -> list[Path]:
    """Drawn scenes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    return [case.path for case in draw_cases(folder)]


def conversations(scenes: list[Path]) -> list[Conversation]:
    """Return each document's expected question."""
    return [
        Conversation(
            str(number),
            (
                Turn(
                    "user",
                    tuple(
                        ImageRef(str(scenes[document.images[part]]))
                        if isinstance(part, int)
                        else part
                        for part in document.parts
                    ),
                ),
            ),
        )
        for number, document in enumerate(TASK_DOCUMENTS)
    ]


def write_tasks(folder: Path, scenes: list[Path], stop: str) -> None:
    """Write the data as parquet, and two tasks about it."""
    import datasets

    folder.mkdir()
    data = folder / "data.parquet"
    columns = {
        "question": [document.question for document in TASK_DOCUMENTS],
        "answer": ["dog"] * len(TASK_DOCUMENTS),
        "choices": [CHOICES] * len(TASK_DOCUMENTS),
        "right": [1] * len(TASK_DOCUMENTS),
        "images": [
            [{"bytes": scenes[number].read_bytes(), "path": None} for number in document.images]
            for document in TASK_DOCUMENTS
        ],
    }
    text, integer = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features(
        {
            "question": text,
            "answer": text,
            "choices": datasets.Sequence(text),
            "right": integer,
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(data)
    (folder / "documents.py").write_text(DOCUMENTS)
    (folder / "open.yaml").write_text(OPEN.format(data=data, stop=stop))
    (folder / "choice.yaml").write_text(CHOICE.format(data=data))


def run_lmms_eval(model: Path, tasks: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Run lmms-eval's own command line; return its log of each document, by task."""
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "caldera"),
        *("--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"),
        *("--tasks", "drawn_open,drawn_choice", "--include_path", str(tasks)),
        *("--batch_size", "3", "--log_samples", "--output_path", str(out)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    process = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    logged = {}
    for name in ("drawn_open", "drawn_choice"):
        [file] = out.rglob(f"*_samples_{name}.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        logged[name] = sorted(lines, key=lambda line: line["doc_id"])
    return logged


def test_its_answers_equal_those_of_the_model(
    tmp_path: Path, assistant: LlavaBundle, scenes: list[Path]
) -> None:
    """With its command line and images in parquet: each answer up to the stop, each choice by the mean loss."""
    save_model_folder(tmp_path / "model", assistant)
    images = DecodedImages(assistant.processor)
    questions = conversations(scenes)
    scorer = LikelihoodScorer(assistant, images)
    answers = generate(assistant, questions, sampling=SamplingParams(max_new_tokens=7))
    assert len(set(answers)) > 2, "equal answers would prove nothing"
    stop = next(letter for letter in answers[0][1:] if letter.isalpha())

    write_tasks(tmp_path / "tasks", scenes, stop)
    logged = run_lmms_eval(tmp_path / "model", tmp_path / "tasks", tmp_path / "out")

    assert [line["filtered_resps"] for line in logged["drawn_open"]] == [
        text.split(stop)[0].rstrip() for text in answers
    ]
    assert any(stop in text for text in answers)
    for question, line in zip(questions, logged["drawn_choice"], strict=True):
        likelihoods = scorer.score([scorer.prompt(question, choice) for choice in CHOICES])
        losses = [-likelihood.per_token for likelihood in likelihoods]
        logged_losses = [float(loss) for loss, _ in line["filtered_resps"]]
        assert logged_losses == pytest.approx(losses, abs=1e-4)
        assert line["acc"] == (min(losses) == losses[1])


@pytest.mark.filterwarnings("ignore")  # in lmms-eval's imports
def test_unsupported_requests_are_rejected(
    tmp_path: Path, assistant: LlavaBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches without a size, several processes, several rounds, and answers without a question."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    save_model_folder(tmp_path / "model", assistant)
    folder, model = str(tmp_path / "model"), get_model("caldera")
    assert (model.__module__, model.__name__) == ("caldera.export.lmms_eval.model", "LmmsModel")
    with pytest.raises(UsageError, match="batch_size is 'auto'; give a number"):
        model(folder, device="cpu", batch_size="auto")
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        model(folder, device="cpu", dtype="float23")
    instance = model(folder, device="cpu", batch_size="2")
    with pytest.raises(UsageError, match="tasks of several rounds"):
        instance.generate_until_multi_round([])
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    bare = Instance("loglikelihood", ("", "a dog"), 0, metadata)
    with pytest.raises(UsageError, match=r"without its question \(acc_mutual_info\)"):
        instance.loglikelihood([bare])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process"):
        model(folder, device="cpu")


@pytest.mark.filterwarnings("ignore")  # in lmms-eval's imports
def test_stops_can_be_ignored(
    tmp_path: Path, assistant: LlavaBundle, caplog: pytest.LogCaptureFixture
) -> None:
    """`ignore_until=True` disables stops; unsupported settings are logged by name."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    save_model_folder(tmp_path / "model", assistant)
    settings = {"max_new_tokens": 7, "until": [""], "num_beams": 5}
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}

    def answer(until: str, *, ignore: bool) -> str:
        model = get_model("caldera")(
            str(tmp_path / "model"), device="cpu", dtype="float32", ignore_until=ignore
        )
        model.task_dict = {"t": {"test": [{}]}}
        arguments = ("what", settings | {"until": [until]}, lambda document: None, 0, "t", "test")
        [text] = model.generate_until([Instance("generate_until", arguments, 0, metadata)])
        return text

    text = answer("", ignore=False)
    assert "generation settings that are not followed: num_beams=5" in caplog.text
    assert answer(text[-1], ignore=True) == text
    assert answer(text[-1], ignore=False) == text.split(text[-1])[0].rstrip() != text
