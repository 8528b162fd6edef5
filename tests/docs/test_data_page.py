"""The commands of docs/data.md about other people's sets and whole sets, run on small sets in the layouts it names."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from caldera.cli import app
from tests.datasets.hub_files import records, table
from tests.hub_server import HubServer, use_hub

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def write(path: Path, content: object) -> None:
    """Write JSON, with the folders before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def draw(path: Path) -> None:
    """Draw a small image, with the folders before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (200, 30, 30)).save(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all the sets are that the commands name."""
    monkeypatch.chdir(tmp_path)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cup."}]
    rows = [
        {"id": number, "image": "gqa/images/1.jpg", "conversations": turns} for number in range(4)
    ]
    write(Path("playground/data/llava_v1_5_mix665k.json"), rows)
    draw(Path("playground/data/gqa/images/1.jpg"))
    write(Path("dialogues.json"), [{**row, "image": "photos/1.jpg"} for row in rows])
    question = {"question_id": 1, "image_id": 7, "question": "What?"}
    questions = {"data_subtype": "train2014", "questions": [question]}
    write(Path("vqav2/v2_OpenEnded_mscoco_train2014_questions.json"), questions)
    answers = {**question, "answers": [{"answer": "cup"}]}
    write(Path("vqav2/v2_mscoco_train2014_annotations.json"), {"annotations": [answers]})
    draw(Path("coco/train2014/COCO_train2014_000000000007.jpg"))
    problem = {"question": "What?", "choices": ["a", "b"], "answer": 1, "image": "image.png"}
    write(Path("ScienceQA/data/scienceqa/problems.json"), {"1": {**problem, "split": "train"}})
    write(Path("ScienceQA/data/scienceqa/pid_splits.json"), {"train": ["1"]})
    draw(Path("ScienceQA/data/scienceqa/images/train/1/image.png"))
    Path("captions.csv").write_text("image,caption\n1.jpg,A cup.\n")
    draw(Path("photos/1.jpg"))
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 6, "height": 5} for number in range(3)
    ]
    captions = [{"image_id": number, "caption": "A cup on a table."} for number in range(3)]
    write(Path("coco/annotations/captions_train2017.json"), {"images": images, "annotations": captions})  # fmt: skip
    for number in range(3):
        draw(Path(f"coco/train2017/{number}.jpg"))
    return tmp_path


@pytest.fixture
def hub(loopback: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with the data sets of the page, tiny."""
    with HubServer() as server:
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        names = ("llava_instruct_150k.json", "conversation_58k.json")
        files = {name: records("0.jpg") for name in names}
        server.add("liuhaotian/LLaVA-Instruct-150K", files, repo_type="dataset")
        tables = {f"{name}/train-00000-of-00001.parquet": table("a") for name in ("ai2d", "vqav2")}
        server.add("HuggingFaceM4/the_cauldron", tables, repo_type="dataset")
        yield server


def test_the_commands_on_the_data_page_work(folder: Path, hub: HubServer) -> None:
    """One after the other, as they stand there; what one writes the next reads, and all of it passes the check."""
    commit = hub.repos["dataset", "liuhaotian/LLaVA-Instruct-150K"].refs["main"]
    sessions = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    about = re.compile(r"caldera data (import|mix|balance|stats|to-parquet)\b")
    lines = [line for session in sessions for line in session.splitlines() if about.match(line)]
    assert len(lines) == 12
    for line in lines:
        result = CliRunner().invoke(app, line.replace("COMMIT", commit).split()[1:])
        assert result.exit_code == 0, f"{line}\n{result.stderr}"
    written = [path for path in sorted(folder.glob("*.json")) if "origins" not in path.name]
    assert len(written) == 11
    assert len([*folder.glob("*.origins.json")]) == 3
    for path in written:
        result = CliRunner().invoke(app, ["data", "check", str(path)])
        assert result.exit_code == 0, f"{path}\n{result.stderr}"
