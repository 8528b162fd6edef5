"""A command that a signal stops keeps what it says, and repeated it ends as if it had not been stopped."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from caldera.cli.interruptions import NOTHING_WRITTEN
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import save_model_folder
from tests.teacher_server import Answer, TeacherServer, good, write_coco

STOPS = 5
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Result(NamedTuple):
    """How a command ended."""

    code: int
    message: str
    seconds: float


class Commands:
    """Commands that run in processes of their own, forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        """Start the process that the commands are forked from."""
        self._output = folder / "output.txt"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_commands.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "500", "OPENAI_API_KEY": "sk-x"},
        )

    def run(
        self, *words: object, meanwhile: Callable[[int], None] = lambda process: None
    ) -> Result:
        """Run a command; `meanwhile` gets the id of its process when it has begun."""
        stdin, stdout, output = self._process.stdin, self._process.stdout, self._output
        assert stdin
        assert stdout
        output.write_text("")
        files = {"stdout": str(output), "stderr": str(output)}
        print(json.dumps({"words": [*map(str, words)], **files}), file=stdin, flush=True)
        process = int(stdout.readline())
        while not output.stat().st_size:
            time.sleep(0.001)
        start = time.monotonic()
        meanwhile(process)
        code = int(stdout.readline())
        return Result(code, output.read_text(), time.monotonic() - start)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def stop_after(seconds: float, number: int) -> Callable[[int], None]:
    """Return a function that sends a signal to a process after some seconds, unless it has ended."""

    def stop(process: int) -> None:
        time.sleep(seconds)
        # A terminal sends Ctrl-C to the whole group.
        send = os.killpg if number == signal.SIGINT else os.kill
        with suppress(ProcessLookupError):
            send(process, number)

    return stop


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command, the files of its result, and how to repeat it."""

    words: str
    """`IN` stands for the folder of the inputs, `OUT` for that of the outputs, `URL` for the server."""

    results: tuple[str, ...]
    """Patterns of files below the folder of outputs whose bytes are compared."""

    again: str = ""
    """Option of the repeated command."""

    atomic: bool = False
    """Whether its files appear when they are complete."""


TINY_DEMO = (
    "--set vision=IN/vision --set language=IN/language --set scenes.held_out=4 --set scenes.train=16 "
    "--set pretrain.batch_size=4 --set finetune.batch_size=4 --set finetune.max_length=1024 "
    "--set questions.per_image=2 --set questions.context_per_image=1 --set questions.captioned=2 --dtype float32"
)
TINY_RECIPE = (
    "--set pretrain.batch_size=4 --set pretrain.micro_batch_size=2 --set pretrain.max_steps=3 "
    "--set finetune.batch_size=4 --set finetune.micro_batch_size=2 --set finetune.max_steps=6 --dtype float32"
)
WEIGHTS = "model/model.safetensors"
STAGES = f"run/*/**/{WEIGHTS}"
CASES = {
    "generate": Case(
        words="data generate coco IN/coco --out OUT/data.json", results=("data.json",), atomic=True
    ),
    "generate with an LLM": Case(
        words="data generate coco IN/coco --out OUT/data.json --teacher openai --base-url URL --model m --price 0,0 "
        "--kinds reasoning --set concurrency=4",
        results=("data.json", "data.run/provenance.jsonl"),
    ),
    "import data": Case(
        words="data import coco IN/coco --out OUT/data.json", results=("data.json",), atomic=True
    ),
    "import inline images": Case(
        words="data import llava IN/inline.json --out OUT/data.json",
        results=("data.json", "data.images/*"),
    ),
    "mix": Case(
        words="data mix IN/data.json IN/data.json:0.5 --out OUT/data.json",
        results=("data.json",),
        atomic=True,
    ),
    "balance": Case(
        words="data balance IN/data.json --out OUT/data.json", results=("data.json",), atomic=True
    ),
    "statistics": Case(
        words="data stats IN/data.json --out OUT/data.html", results=("data.html",), atomic=True
    ),
    "page": Case(
        words="data page IN/data.json --out OUT/data.html", results=("data.html",), atomic=True
    ),
    "to parquet": Case(
        words="data to-parquet IN/data.json --out OUT/hub", results=("hub/*",), atomic=True
    ),
    "import a model": Case(
        words="import --vision IN/vision --language IN/language --template vicuna_v1 --out OUT/model",
        results=("model/*",),
        atomic=True,
    ),
    "export a model": Case(
        words="export IN/start --to original --out OUT/original",
        results=("original/*",),
        atomic=True,
    ),
    "evaluate": Case(
        words="evaluate coco --model IN/start --data IN/coco --out OUT/run --set max_new_tokens=4 --dtype float32 "
        "--set batch_size=8 --per-image 2",
        results=("run/results.json", "run/answers.jsonl"),
    ),
    "recipe": Case(
        words="train recipe llava_15_7b --vision IN/vision --language IN/language --pretrain-data IN/captions.json "
        f"--data IN/captions.json --out OUT/run {TINY_RECIPE}",
        results=(f"run/*/{WEIGHTS}",),
        again="--resume",
    ),
    "demo": Case(
        words=f"demo --out OUT/run {TINY_DEMO}",
        results=("run/scenes/**/*", "run/data/*.json", "run/answers/*", f"run/{WEIGHTS}"),
    ),
    "ablate": Case(
        words=f"ablate --only linear --seeds 1 --out OUT/run {TINY_DEMO}",
        results=("run/data/*.json", "run/*/seed-0/scores.json", f"run/**/{WEIGHTS}"),
    ),
}
"""Commands that are stopped, by name."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Return the process that commands are forked from."""
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, vision_folder: Path, language_folder: Path
) -> Path:
    """Write annotations, data files, towers and a model."""
    folder = tmp_path_factory.mktemp("inputs") / "IN"
    write_coco(folder / "coco", 60)
    (folder / "vision").symlink_to(vision_folder)
    (folder / "language").symlink_to(language_folder)
    save_model_folder(folder / "start", assemble(vision_folder, language_folder, seed=3))
    records = [caption_record(number) for number in range(2000)]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "captions.json").write_text(json.dumps(records[:24]))
    for record in records[:200]:
        image = (folder / record["image"]).read_bytes()
        record["image"] = f"data:image/png;base64,{b64encode(image).decode()}"
    (folder / "inline.json").write_text(json.dumps(records[:200]))
    return folder


def caption_record(number: int) -> dict[str, Any]:
    """Return a record about one of the sixty images."""
    noun = ("dog", "cat", "bird")[number % 3]
    return {
        "id": f"r{number}",
        "image": f"coco/small/{number % 60:04}.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat is there?"},
            {"from": "gpt", "value": f"the {noun} is on the {('left', 'beach')[number % 2]}"},
        ],
    }


@pytest.fixture
def teacher(serve: Callable[..., TeacherServer]) -> TeacherServer:
    """Start a server that answers after a moment."""
    return serve(lambda request, _: Answer(good(request).body, delay=0.05))


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every file that matches a pattern, by its path; the folder's own path does not count."""
    return {
        str(path.relative_to(folder)): sha256(
            path.read_bytes().replace(bytes(folder), b"OUT")
        ).hexdigest()
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file()
    }


def times(folder: Path) -> dict[Path, int]:
    """Return when each file of a folder was written; temporary files and locks are hidden and do not count."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    }


@pytest.mark.slow
def test_a_second_signal_ends_at_once(
    commands: Commands, inputs: Path, serve: Callable[..., TeacherServer], tmp_path: Path
) -> None:
    """Although the first one waits for the replies in flight; replies that have arrived are kept."""
    server = serve(lambda request, number: Answer(good(request).body, delay=60.0 * (number > 9)))
    words = CASES["generate with an LLM"].words.replace("IN/", f"{inputs}/")
    words = words.replace("OUT/", f"{tmp_path}/").replace("URL", server.url)
    stops: list[float] = []

    def send_twice(process: int) -> None:
        while server.count < 12:
            time.sleep(0.01)
        for _ in range(2):
            os.kill(process, signal.SIGINT)
            stops.append(time.monotonic())
            time.sleep(1)

    result = commands.run(*words.split(), meanwhile=send_twice)
    assert result.code == 130
    assert time.monotonic() - stops[1] < 5
    assert "Traceback" not in result.message
    journal = (tmp_path / "data.run" / "journal.jsonl").read_text()
    assert journal.count('{"received"') == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_stopped_commands_tell_the_truth_and_resume(
    commands: Commands, inputs: Path, teacher: TeacherServer, tmp_path: Path, name: str
) -> None:
    """After signals at random moments the message is true, and the result is that of an uninterrupted run."""
    case, rng = CASES[name], random.Random(name)

    def words(out: Path) -> list[str]:
        out.mkdir(exist_ok=True)
        text = case.words.replace("IN/", f"{inputs}/").replace("OUT/", f"{out}/")
        return text.replace("URL", teacher.url).split()

    expected = tmp_path / "expected"
    uninterrupted = commands.run(*words(expected))
    assert uninterrupted.code == 0, uninterrupted.message
    longest = uninterrupted.seconds * (1 if case.atomic else 0.6)
    for index in range(STOPS):
        out = tmp_path / (f"stopped{index}" if case.atomic else "stopped")
        number, before = SIGNALS[index % 2], times(out)
        result = commands.run(
            *words(out),
            *(case.again.split() if index else []),
            meanwhile=stop_after(rng.uniform(0, longest), number),
        )
        if not result.code:
            break
        assert result.code == 128 + number, result.message
        check_message(result.message, before, out, atomic=case.atomic)
    if result.code:
        models = {path: path.stat().st_mtime_ns for path in out.glob(STAGES)}
        resumed = commands.run(*words(out), *case.again.split())
        assert resumed.code == 0, resumed.message
        assert {path: path.stat().st_mtime_ns for path in models} == models
    assert digests(out, case.results) == digests(expected, case.results) != {}


def check_message(output: str, before: dict[Path, int], out: Path, *, atomic: bool) -> None:
    """Compare the message of a stopped command with the files on disk."""
    assert "Traceback" not in output
    message, after = output.splitlines()[-1], times(out)
    changed = [path for path in after if after[path] != before.get(path)]
    if atomic:
        assert not list(out.rglob(".*"))
    if message == NOTHING_WRITTEN:
        assert not changed
    elif match := re.match(r"stopped; written: (.*?)(?:; not written: (.*))?; repeat the", message):
        written = [Path(path) for path in match[1].split(", ")]
        assert all(any(path.is_relative_to(root) for root in written) for path in changed)
        assert all(any(path.is_relative_to(root) for path in changed) for root in written)
        assert match[2] is None or not Path(match[2]).exists()
    elif match := re.match(r"stopped; (\d+) dialogues are finished \((.*?)\)", message):
        file = out / "data.json"
        assert match[2] == (f"in {file}" if file.exists() else "no file yet")
        assert int(match[1]) == (len(json.loads(file.read_text())) if file.exists() else 0)
    elif match := re.match(r"stopped; (\d+) of \d+ answers are kept in (.*?);", message):
        assert int(match[1]) == Path(match[2]).read_text().count('"key"')
    elif match := re.match(r"stopped; kept in (.*?): (.*); repeat the command", message):
        parts = match[2].split(", ")
        if answers := re.match(r"(\d+) answers", match[2]):
            journal = Path(match[1]) / "journal.jsonl"
            assert int(answers[1]) == journal.read_text().count('"key"')
        for name, pattern in EVIDENCE.items():
            count = len([*Path(match[1]).glob(pattern)])
            assert (name.format(count=count) in parts) == (count > 0), message
        for stage, step in re.findall(r"(pretrain|finetune)/checkpoints/step-(\d+)", str([*after])):
            name = {"pretrain": "stage 1", "finetune": "stage 2"}[stage]
            assert any(
                re.fullmatch(f"(an unfinished )?{name}( up to .*{int(step)}| of .*)?", part)
                for part in parts
            )
    else:
        assert message == "stopped; there is nothing to keep yet, repeat the command"
        assert not [path for path in after if path.name in ("model.safetensors", "journal.jsonl")]


EVIDENCE = {
    "scenes": "scenes/*",
    "data": "data/*.json",
    "features of images": "features/*.jsonl",
    "stage 1": "pretrain/model",
    "stage 2": "finetune/model",
    "stage 2 without stage 1": "without_pretraining/model",
    "stage 1 of {count} variants": "pretrain/*/*/model",
    "scores of {count} variants": "*/seed-0/scores.json",
    "the table": "ablations.md",
    "the report": "report.html",
}
"""Files and folders that show that a part was kept, by the part's name in messages."""
