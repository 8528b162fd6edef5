"""The commands as a user calls them, in a process of their own: output, exit codes, one line for each fault."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from caldera.conversation import read_conversations
from caldera.formats.model_folder import save_model_folder
from caldera.model.assistant import LlavaBundle


def run(
    *words: str | Path, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [sys.executable, "-m", "caldera", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", **more},
        check=False,
    )


@dataclass(frozen=True)
class Done:
    """What a command in this process came to."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def call(in_columns: Callable[[int], Callable[..., tuple[int, str, str]]]) -> Callable[..., Done]:
    """Run a command by its main function, as the installed program does."""
    return lambda *words: Done(*in_columns(200)(*words))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A COCO folder of four drawn squares, each with captions and a box."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "small").mkdir()
    images = [
        {"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30}
        for number in range(4)
    ]
    for number in range(4):
        Image.new("RGB", (40, 30), (10 * number, 99, 9)).save(folder / "small" / f"{number}.jpg")
    captions = [
        {"id": 2 * number + at, "image_id": number, "caption": f"A red {name} in a kitchen."}
        for number, name in enumerate(("dog", "cat", "dog", "cup"))
        for at in range(2)
    ]
    boxes = [
        {"id": number, "image_id": number, "category_id": kind, "bbox": [2, 2, 9, 8], "iscrowd": 0}
        for number, kind in enumerate((1, 2, 1, 3))
    ]
    kinds = [{"id": at, "name": name} for at, name in enumerate(("dog", "cat", "cup", "car"), 1)]
    for name, content in (
        ("captions_small", {"images": images, "annotations": captions}),
        ("instances_small", {"images": images, "annotations": boxes, "categories": kinds}),
    ):
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_help_begins_with_examples_and_imports_nothing_heavy() -> None:
    """`caldera --help` shows commands to copy before its options, and needs neither torch nor transformers to do so."""
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "caldera", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "caldera demo" in imported.stdout
    assert imported.stdout.index("Examples") < imported.stdout.index("Options")
    modules = {line.split("|")[-1].strip().split(".")[0] for line in imported.stderr.splitlines()}
    assert {"caldera", "typer"} <= modules
    assert not {"torch", "transformers", "tokenizers", "numpy", "PIL", "matplotlib"} & modules


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "data generate",
        "data check",
        "data inspect",
        "train pretrain",
        "train finetune",
        "train recipe",
        "train merge",
        "recipes",
        "evaluate coco",
        "chat",
    ],
)
def test_every_command_shows_examples_first(call: Callable[..., Done], command: str) -> None:
    """Help of each command has an example before its options."""
    done = call(*command.split(), "--help")
    assert done.returncode == 0
    assert f"caldera {command}" in done.stdout.split("Options")[0]


def test_data_goes_from_annotations_to_a_checked_file(
    call: Callable[..., Done], coco: Path, tmp_path: Path
) -> None:
    """generate, check and inspect work one after another on a COCO folder."""
    made = call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    assert made.returncode == 0, made.stderr
    assert "conversation" in made.stderr
    assert len(read_conversations(tmp_path / "data.json")) >= 10

    checked = call("data", "check", tmp_path / "data.json")
    assert checked.returncode == 0, checked.stderr
    assert "bad: 0" in checked.stderr
    assert checked.stdout == ""


def test_a_surplus_field_of_pairs_can_be_passed_over(
    call: Callable[..., Done], photos: Path, tmp_path: Path
) -> None:
    """What the error says to do works, as with the other commands that read records."""
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a dog"}]
    record = {"id": "1", "image": "photos/1.png", "model": "x", "conversations": turns}
    (tmp_path / "pairs.json").write_text(json.dumps([record]))
    words = ("data", "generate", "pairs", tmp_path / "pairs.json", "--out", tmp_path / "out.json")

    refused = call(*words)
    passed = call(*words, "--ignore-field", "model")

    assert refused.returncode == 3
    assert "pass --ignore-field model" in refused.stderr
    assert passed.returncode == 0, passed.stderr
    assert len(read_conversations(tmp_path / "out.json")) == 1


def test_check_lists_what_is_wrong(call: Callable[..., Done], coco: Path, tmp_path: Path) -> None:
    """Every bad record is listed with its place, and the exit code says so."""
    file = tmp_path / "data.jsonl"
    call("data", "generate", "coco", coco, "--out", file)
    lines = file.read_text().splitlines()
    bad = ['{"id": "x", "image": "a.jpg"}', lines[0].replace(".jpg", ".png"), lines[1]]
    file.write_text("\n".join([*lines, *bad]) + "\n")

    done = call("data", "check", file)

    assert done.returncode == 3
    assert f"{file}:{len(lines) + 1}: field 'conversations' is missing" in done.stderr
    assert f"{file}:{len(lines) + 2}: " in done.stderr
    assert "bad: 2" in done.stderr
    assert len((tmp_path / "data.bad.jsonl").read_text().splitlines()) == 2
    assert call("data", "check", file, "--max-bad", "0.5").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("deemo",), 2, "demo"),
        (("data", "generate", "cocoo", "x", "--out", "y"), 2, "did you mean 'coco'?"),
        (("data", "generate", "coco", "nowhere", "--out", "y"), 3, "no annotations: nowhere/annot"),
        (
            ("data", "generate", "coco", "x", "--out", "y", "--kinds", "detial"),
            2,
            "did you mean 'detail'?",
        ),
        (("data", "generate", "coco", "x", "--out", "y", "--dry-run"), 2, "--teacher openai"),
        (
            ("data", "generate", "coco", "x", "--out", "y", "--teacher", "opnai"),
            2,
            "did you mean 'openai'?",
        ),
        (
            ("data", "generate", "coco", "x", "--out", "y", "--teacher", "openai", "--price", "1"),
            2,
            "--price 1 is not two numbers",
        ),
        (
            (
                "data",
                "generate",
                "coco",
                "x",
                "--out",
                "y",
                "--teacher",
                "openai",
                "--set",
                "retry=1",
            ),
            2,
            "did you mean 'retries'?",
        ),
        (("data", "check", "nowhere.json"), 3, "cannot read nowhere.json"),
        (("chat", "nowhere"), 3, "nowhere is not a folder"),
        (("chat", ".", "--image", "no.png"), 3, "no.png does not exist"),
        (("demo", "--recipe", "dmo"), 2, "did you mean 'demo'?"),
        (("demo", "--recipe", "llava_7b"), 2, "run it with: caldera train recipe llava_7b"),
        (("recipes", "llava15_7b"), 2, "did you mean 'llava_15_7b'?"),
        (("train", "recipe", "llava_7b", "--out", "y"), 2, "--pretrain-data FILE (CC3M-595K: chat"),
        (("demo", "--set", "finetune.batchsize=8"), 2, "did you mean 'batch_size'?"),
        (("demo", "--set", "finetune.batch_size=big"), 2, "does not fit: expected int, currently"),
        (("demo", "--set", "finetune.batch_size=0"), 2, "it must be at least 1"),
        (("demo", "--set", "finetune.max_steps=0"), 2, "max_steps is 0; it must be at least 1"),
        (("demo", "--set", "aspect=padd"), 2, "did you mean 'pad'?"),
        (("demo", "--device", "abacus"), 2, "device 'abacus' cannot be used"),
        (("demo", "--dtype", "float33"), 2, "did you mean 'float32'?"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    call: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    """No traceback, nothing left behind."""
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("*.json*"))


def with_room_for(size: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that can write no file of more than `size` bytes."""
    limit = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); import signal; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from caldera.cli import main; "
        "sys.argv = ['caldera', *sys.argv[1:]]; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", limit, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(coco: Path, tmp_path: Path) -> None:
    """Where the file cannot be written to the end, exit code 4, and neither it nor a part of it is there."""
    done = with_room_for(512, "data", "generate", "coco", coco, "--out", tmp_path / "d.json")
    assert done.returncode == 4, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


@pytest.mark.parametrize(
    ("size", "every", "what"),
    [(2_000, 999, "metrics.jsonl"), (20_000, 2, "checkpoints/step-00000002")],
)
def test_a_disk_that_fills_up_while_training_is_one_line(
    call: Callable[..., Done],
    assistant: LlavaBundle,
    coco: Path,
    tmp_path: Path,
    size: int,
    every: int,
    what: str,
) -> None:
    """Whether records or weights find no room, exit code 4, and neither checkpoint nor model is half there."""
    save_model_folder(tmp_path / "start", assistant)
    call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    done = with_room_for(
        size,
        *("train", "finetune", "--model", tmp_path / "start", "--data", tmp_path / "data.json"),
        *("--out", tmp_path / "run", "--dtype", "float32", "--set", "batch_size=4"),
        *("--set", "max_length=2000", "--set", f"save_every={every}", "--set", "epochs=9"),
        *("--set", "cache_features=false"),
    )
    assert done.returncode == 4, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert "cannot write" in line
    assert what in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists()
    assert not [path for path in tmp_path.rglob("*") if "step-" in path.name]


def test_a_closed_pipe_and_a_narrow_plain_terminal_are_survived() -> None:
    """`| head` and LANG=C end without a traceback."""
    piped = subprocess.run(
        f"{sys.executable} -m caldera --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in piped.stderr
    plain = run(
        "data", "check", "nowhere.json", LANG="C", COLUMNS="40", NO_COLOR="1", PYTHONUTF8="0"
    )
    assert plain.returncode == 3
    assert "\x1b" not in plain.stderr


def test_ctrl_c_ends_with_130_and_no_traceback(
    call: Callable[..., Done], assistant: LlavaBundle, coco: Path, photos: Path, tmp_path: Path
) -> None:
    """A training that is interrupted says so in a line, and leaves no model folder."""
    save_model_folder(tmp_path / "start", assistant)
    call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    command = [
        *(sys.executable, "-m", "caldera", "train", "finetune", "--model", str(tmp_path / "start")),
        *("--data", str(tmp_path / "data.json"), "--out", str(tmp_path / "run")),
        *("--set", "epochs=100000", "--set", "batch_size=2", "--set", "max_length=2000"),
    ]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not metrics.is_file():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130, said
    assert "stopped; what was finished is kept, and the same command with --resume goes on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "model").exists()


def test_recipes_are_listed_and_shown(call: Callable[..., Done]) -> None:
    """All of them in a table and in JSON, one of them in full with its sources."""
    listed = call("recipes")
    assert listed.returncode == 0, listed.stderr
    told = json.loads(call("recipes", "--json").stdout)
    assert len(told) == 10
    assert all(one["name"] in listed.stdout for one in told)
    assert "6.74 B" in listed.stdout
    [shown] = [one for one in told if one["name"] == "llava_15_7b"]
    assert json.loads(call("recipes", "llava_15_7b", "--json").stdout) == shown
    full = call("recipes", "llava_15_7b").stdout
    assert all(setting["name"] in full for setting in shown["settings"])
    assert "arXiv 2310.03744, table 9" in full
    assert "blip_laion_cc_sbu_558k.json" in full


def test_an_adapter_is_merged_onto_its_base_alone(
    call: Callable[..., Done], assistant: LlavaBundle, coco: Path, tmp_path: Path
) -> None:
    """--lora trains factors; the adapter merges to the run's model, an other base is told by its digest."""
    save_model_folder(tmp_path / "start", assistant)
    call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    trained = call(
        *("train", "finetune", "--model", tmp_path / "start", "--data", tmp_path / "data.json"),
        *("--out", tmp_path / "run", "--lora", "--set", "lora.rank=3", "--set", "max_steps=2"),
        *("--set", "batch_size=4", "--set", "max_length=2000", "--dtype", "float32"),
    )
    assert trained.returncode == 0, trained.stderr
    stage = json.loads((tmp_path / "run" / "stage.json").read_text())
    assert (stage["learning_rate"], stage["lora"]["rank"]) == (2e-4, 3)
    assert stage["lora"]["alpha"] == 256
    words = ("train", "merge", tmp_path / "run" / "adapter", "--out", tmp_path / "merged")

    refused = call(*words, "--model", tmp_path / "run" / "model")
    assert refused.returncode == 3
    assert re.search("sha256 [0-9a-f]{64}, these have [0-9a-f]{64}", refused.stderr)
    assert not (tmp_path / "merged").exists()

    merged = call(*words, "--model", tmp_path / "start")
    assert merged.returncode == 0, merged.stderr
    for file in (tmp_path / "run" / "model").iterdir():
        assert (tmp_path / "merged" / file.name).read_bytes() == file.read_bytes(), file.name
    assert "is there already" in call(*words, "--model", tmp_path / "start").stderr
    chat = call("chat", tmp_path / "run" / "adapter", "--prompt", "hi")
    assert chat.returncode == 3
    assert "is an adapter, which says nothing without its base; merge the two" in chat.stderr


def test_chat_refuses_what_it_cannot_ask(
    call: Callable[..., Done], assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """A ninth image and an empty prompt are wrong usage, in a line; nothing is answered."""
    save_model_folder(tmp_path / "m", assistant)
    nine = [word for _ in range(9) for word in ("--image", photos / "1.png")]
    for words, message in (
        ((*nine, "--prompt", "what?"), "9 images are shown together, over the limit of 8"),
        (("--prompt", ""), "the question is empty"),
        (("--image", photos / "1.png", "--prompt", " "), "the question is empty"),
    ):
        done = call("chat", tmp_path / "m", *words)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert done.stdout == ""


def test_chat_answers_once_on_stdout(
    call: Callable[..., Done], assistant: LlavaBundle, photos: Path, tmp_path: Path
) -> None:
    """With --prompt the answer alone is printed, the same whatever the seed."""
    save_model_folder(tmp_path / "m", assistant)
    words = ("chat", tmp_path / "m", "--image", photos / "1.png", "--prompt", "what is this?")
    first, second = (call(*words, "--max-new-tokens", "9", "--seed", seed) for seed in "12")
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    assert first.stdout == second.stdout
    assert first.stderr == ""


def test_inspect_marks_what_is_learned_without_color_too(
    call: Callable[..., Done], coco: Path, tmp_path: Path
) -> None:
    """In a pipe each answer stands in double brackets with its end mark, and nothing else does."""
    data = tmp_path / "data.json"
    call("data", "generate", "coco", coco, "--kinds", "vqa", "--out", data)
    done = call("data", "inspect", data)
    record = json.loads(data.read_text())[0]
    answers = [turn["value"] for turn in record["conversations"] if turn["from"] == "gpt"]
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\[\[ (.*?)</s>\]\]", done.stdout) == answers
    assert done.stdout.count("[[") == len(answers)


def test_parity_says_good_or_what_differs(
    tmp_path: Path, assistant: LlavaBundle, photos: Path, call: Callable[..., Done]
) -> None:
    """A table of stages and a verdict on stdout, JSON where it is asked for; a folder that differs ends with code 8."""
    save_model_folder(tmp_path / "m", assistant)
    options = (
        "--against",
        "transformers",
        "--images",
        photos / "2.png",
        "--json",
        tmp_path / "p.json",
    )
    good = call("parity", tmp_path / "m", *options)
    assert good.returncode == 0, good.stderr
    assert "good: transformers gives what caldera gives, 1 of 1 answers equal" in good.stdout
    assert json.loads((tmp_path / "p.json").read_text())["good"] is True

    settings = json.loads((tmp_path / "m" / "config.json").read_text())
    settings["projector_hidden_act"] = "relu"  # transformers reads it, caldera's card says gelu
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    bad = call("parity", tmp_path / "m", *options)
    assert bad.returncode == 8
    assert "error: not good: image tokens differ by" in bad.stderr
    assert json.loads((tmp_path / "p.json").read_text())["good"] is False


def test_exports_are_asked_for_by_exact_words(tmp_path: Path, call: Callable[..., Done]) -> None:
    """Each word that is not known is answered with the nearest."""
    for words, meant in (
        (("--to", "ggfu"), "gguf"),
        (("--to", "gguf", "--type", "q8"), "q8_0"),
        (("--to", "gguf", "--class-token", "lats"), "last"),
    ):
        done = call("export", tmp_path / "m", "--out", tmp_path / "o", *words)
        assert done.returncode == 2
        assert f"did you mean '{meant}'?" in done.stderr
