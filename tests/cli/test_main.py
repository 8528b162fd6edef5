"""The command line as a whole: help, exit codes, one line for each error, interruption."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from caldera.cli import main
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from tests.cli.conftest import CommandResult


def test_help_begins_with_examples_and_imports_nothing_heavy() -> None:
    """`caldera --help` has commands to copy before its options, and imports neither torch nor transformers."""
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
    ("command", "code", "message"),
    [
        ("data generate cocoo x --out y", 2, "did you mean 'coco'?"),
        ("data generate coco nowhere --out y", 3, "no annotations: nowhere/annot"),
        ("data generate coco x --out y --kinds detial", 2, "did you mean 'detail'?"),
        ("data generate coco x --out y --dry-run", 2, "--teacher openai"),
        ("data generate coco x --out y --teacher opnai", 2, "did you mean 'openai'?"),
        ("data generate coco x --out y --teacher openai --price 1", 2, "--price 1 is not two numbers"),
        ("data generate coco x --out y --teacher openai --set retry=1", 2, "did you mean 'retries'?"),
        ("data check nowhere.json", 3, "cannot read nowhere.json"),
        ("chat nowhere", 3, "nowhere does not exist"),
        ("chat . --image no.png", 3, "no.png does not exist"),
        ("demo --recipe dmo", 2, "did you mean 'demo'?"),
        ("demo --recipe photos", 2, "needs photos; add --images FOLDER with a folder for each class"),
        ("demo --images photos", 2, "draws its images; remove --images, or add --recipe photos"),
        ("demo --recipe llava_7b", 2, "run it with: caldera train recipe llava_7b"),
        ("recipes llava15_7b", 2, "did you mean 'llava_15_7b'?"),
        ("train recipe llava_7b --out y", 2, "--pretrain-data FILE (CC3M-595K: chat"),
        ("demo --set finetune.batchsize=8", 2, "did you mean 'batch_size'?"),
        ("demo --set finetune.batch_size=big", 2, "does not fit: expected int, currently"),
        ("demo --set finetune.batch_size=0", 2, "it must be at least 1"),
        ("demo --set finetune.max_steps=0", 2, "max_steps is 0; it must be at least 1"),
        ("demo --set aspect=padd", 2, "did you mean 'pad'?"),
        ("demo --device abacus", 2, "device 'abacus' cannot be used"),
        ("demo --dtype float33", 2, "did you mean 'float32'?"),
        ("data import vqq x --out y", 2, "no importer is called 'vqq'; did you mean 'vqa'?"),
        ("data import vqa x --out y --answer-prompt al", 2, "no choice of --answer-prompt is called 'al'"),
        ("data import vqa nowhere --out y", 3, "cannot read nowhere: it does not exist"),
        ("data import scienceqa x --out y --prompt-layout QCM", 2, "did you mean 'QCM-"),
        ("data import scienceqa x --out y", 3, "give the folder of problems.json and pid_splits.json"),
        ("data import captions x.csv --out y", 3, "cannot read x.csv"),
        ("data import coco x --out y", 3, "no annotations: x/annotations has no captions_*.json"),
        ("data import llava x.json --out y", 3, "cannot read x.json"),
        ("data mix a.json:no --out y", 2, "a.json:no: the weight is 'no'; write a number above 0"),
        ("data mix a.json --out y", 3, "cannot read a.json"),
        ("data balance a.json --out y", 3, "cannot read a.json"),
        ("data stats a.json", 3, "cannot read a.json"),
        ("data to-parquet a.json --out y", 3, "cannot read a.json"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_an_exit_code(
    call: Callable[..., CommandResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    code: int,
    message: str,
) -> None:
    """The message names the fix, there is no traceback, and no data is written."""
    monkeypatch.chdir(tmp_path)
    result = call(*command.split())
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def run_with_file_limit(size: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command that cannot write a file of more than `size` bytes."""
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


def test_a_full_disk_is_one_line_and_nothing_is_written(coco: Path, tmp_path: Path) -> None:
    """If the file cannot be written completely, the exit code is 4, and no part of it remains."""
    result = run_with_file_limit(
        512, "data", "generate", "coco", coco, "--out", tmp_path / "d.json"
    )
    assert result.returncode == 4, result.stderr
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


@pytest.mark.parametrize(
    ("size", "save_every", "path"),
    [(2_000, 999, "metrics.jsonl"), (20_000, 2, "checkpoints/step-00000002")],
)
def test_a_disk_full_during_training_is_one_line(
    call: Callable[..., CommandResult],
    assistant: LlavaBundle,
    coco: Path,
    tmp_path: Path,
    size: int,
    save_every: int,
    path: str,
) -> None:
    """For metrics and for weights the exit code is 4, and neither checkpoint nor model is incomplete."""
    save_model_folder(tmp_path / "start", assistant)
    call("data", "generate", "coco", coco, "--out", tmp_path / "data.json")
    result = run_with_file_limit(
        size,
        *("train", "finetune", "--model", tmp_path / "start", "--data", tmp_path / "data.json"),
        *("--out", tmp_path / "run", "--dtype", "float32", "--set", "batch_size=4"),
        *("--set", "max_length=2000", "--set", f"save_every={save_every}", "--set", "epochs=9"),
        *("--set", "cache_features=false"),
    )
    assert result.returncode == 4, result.stderr
    [line] = [line for line in result.stderr.splitlines() if "error" in line]
    assert "cannot write" in line
    assert path in line
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "model").exists()
    assert not list(tmp_path.rglob("*step-*"))


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    """The exit code is that of outputs that cannot be written."""
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "caldera", "recipes"]
        result = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    expected = "error: cannot write the output: No space left on device; free space\n"
    assert (result.returncode, result.stderr) == (4, expected)


def test_a_closed_pipe_and_a_plain_terminal_give_no_traceback() -> None:
    """`| head`, LANG=C and an encoding without the characters of a file's name end without a traceback."""
    piped = subprocess.run(
        f"{sys.executable} -m caldera --help | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in piped.stderr
    settings = {
        "LANG": "C",
        "COLUMNS": "40",
        "NO_COLOR": "1",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
    }
    plain = subprocess.run(
        [sys.executable, "-m", "caldera", "data", "check", "Bücher-照片.json"],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
    )
    assert plain.returncode == 3
    assert "cannot read B?cher-??.json" in plain.stderr
    assert "\x1b" not in plain.stderr


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "B?cher ??"), ("latin-1", "Bücher ??"), ("utf-8", "Bücher 照片")]
)  # fmt: skip
def test_characters_that_an_encoding_lacks_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, expected: str
) -> None:
    """A message in any encoding has ? for what it cannot show, and no exception."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.argv", ["caldera", "data", "check", str(tmp_path / "Bücher 照片")])
    with pytest.raises(SystemExit, match="3"):
        main()
    stream.seek(0)
    assert expected in stream.read()
