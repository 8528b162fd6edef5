"""lmms-eval finds caldera's models by name, and what it gets from them is what they say elsewhere."""

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
from caldera.export.parity.sample_images import drawn_images
from caldera.formats.model_folder import save_model_folder
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.likelihood import LikelihoodScorer
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle

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
"""What the tasks show of a document."""


def images(document):
    """Return its images."""
    return document["images"]
'''

CHOICES = ["a dog", "two cats on the left", "meadow"]

Part = str | int
"""Text, or the number of an image of the document."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the tasks, and how its question should reach the model."""

    question: str
    shown: tuple[int, ...]
    parts: tuple[Part, ...]


DOCUMENTS_ASKED = (
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
    return [shown.path for shown in drawn_images(folder)]


def conversations(scenes: list[Path]) -> list[Conversation]:
    """Return each document's question as it should reach the model."""
    return [
        Conversation(
            str(number),
            (
                Turn(
                    "user",
                    tuple(
                        ImageRef(str(scenes[document.shown[part]]))
                        if isinstance(part, int)
                        else part
                        for part in document.parts
                    ),
                ),
            ),
        )
        for number, document in enumerate(DOCUMENTS_ASKED)
    ]


def write_tasks(folder: Path, scenes: list[Path], stop: str) -> None:
    """Write the data as parquet, and two tasks that ask it."""
    import datasets

    folder.mkdir()
    data = folder / "data.parquet"
    columns = {
        "question": [document.question for document in DOCUMENTS_ASKED],
        "generate": ["dog"] * len(DOCUMENTS_ASKED),
        "choices": [CHOICES] * len(DOCUMENTS_ASKED),
        "right": [1] * len(DOCUMENTS_ASKED),
        "images": [
            [{"bytes": scenes[number].read_bytes(), "path": None} for number in document.shown]
            for document in DOCUMENTS_ASKED
        ],
    }
    text, whole = datasets.Value("string"), datasets.Value("int64")
    features = datasets.Features(
        {
            "question": text,
            "generate": text,
            "choices": datasets.Sequence(text),
            "right": whole,
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(data)
    (folder / "documents.py").write_text(DOCUMENTS)
    (folder / "open.yaml").write_text(OPEN.format(data=data, stop=stop))
    (folder / "choice.yaml").write_text(CHOICE.format(data=data))


def run_lmms_eval(model: Path, tasks: Path, out: Path) -> dict[str, list[dict[str, Any]]]:
    """Run lmms-eval's own command line; return what it logged of each document, by task."""
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "caldera"),
        *("--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"),
        *("--tasks", "drawn_open,drawn_choice", "--include_path", str(tasks)),
        *("--batch_size", "3", "--log_samples", "--output_path", str(out)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logged = {}
    for name in ("drawn_open", "drawn_choice"):
        [file] = out.rglob(f"*_samples_{name}.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        logged[name] = sorted(lines, key=lambda line: line["doc_id"])
    return logged


def test_its_answers_are_the_models(
    tmp_path: Path, assistant: LlavaBundle, scenes: list[Path]
) -> None:
    """By its command line, from images in parquet: each answer up to the stop, each choice by the mean loss."""
    save_model_folder(tmp_path / "model", assistant)
    images = DecodedImages(assistant.processor)
    asked = conversations(scenes)
    generator, weigher = BatchGenerator(assistant, images), LikelihoodScorer(assistant, images)
    said = generator.generate(
        [generator.prompt(one) for one in asked], SamplingParams(max_new_tokens=7)
    )
    assert len(set(said)) > 2, "all alike would prove nothing"
    stop = next(letter for letter in said[0][1:] if letter.isalpha())

    write_tasks(tmp_path / "tasks", scenes, stop)
    logged = run_lmms_eval(tmp_path / "model", tmp_path / "tasks", tmp_path / "out")

    assert [line["filtered_resps"] for line in logged["drawn_open"]] == [
        text.split(stop)[0].rstrip() for text in said
    ]
    assert any(stop in text for text in said)
    for one, line in zip(asked, logged["drawn_choice"], strict=True):
        weights = weigher.score([weigher.prompt(one, choice) for choice in CHOICES])
        losses = [-weight.per_token for weight in weights]
        got = [float(loss) for loss, _ in line["filtered_resps"]]
        assert got == pytest.approx(losses, abs=1e-4)
        assert line["acc"] == (min(losses) == losses[1])


@pytest.mark.filterwarnings("ignore")  # of what lmms-eval imports
def test_what_cannot_be_asked_is_refused(
    tmp_path: Path, assistant: LlavaBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by name; batches without a size, processes without a part, rounds and answers without a question."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models import get_model

    save_model_folder(tmp_path / "model", assistant)
    folder, model = str(tmp_path / "model"), get_model("caldera")
    assert (model.__module__, model.__name__) == ("caldera.export.lmms_model", "LmmsModel")
    with pytest.raises(UsageError, match="batch_size is 'auto'; give a number"):
        model(folder, device="cpu", batch_size="auto")
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        model(folder, device="cpu", dtype="float23")
    opened = model(folder, device="cpu", batch_size="2")
    with pytest.raises(UsageError, match="tasks of several rounds"):
        opened.generate_until_multi_round([])
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    bare = Instance("loglikelihood", ("", "a dog"), 0, metadata)
    with pytest.raises(UsageError, match=r"without its question \(acc_mutual_info\)"):
        opened.loglikelihood([bare])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process"):
        model(folder, device="cpu")


@pytest.mark.filterwarnings("ignore")  # of what lmms-eval imports
def test_stops_are_ignored_where_asked(
    tmp_path: Path, assistant: LlavaBundle, caplog: pytest.LogCaptureFixture
) -> None:
    """`ignore_until=True` keeps answers whole; settings that are not followed are told by name."""
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
        given = ("what", settings | {"until": [until]}, lambda document: None, 0, "t", "test")
        [text] = model.generate_until([Instance("generate_until", given, 0, metadata)])
        return text

    whole = answer("", ignore=False)
    assert "generation settings that are not followed: num_beams=5" in caplog.text
    assert answer(whole[-1], ignore=True) == whole
    assert answer(whole[-1], ignore=False) == whole.split(whole[-1])[0].rstrip() != whole
