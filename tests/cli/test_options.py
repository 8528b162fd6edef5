"""Shared options, and the hints for renamed options and commands."""

from collections.abc import Callable, Iterator

import pytest
from typer.main import get_command

from caldera.cli import app
from caldera.cli.options import RENAMED_COMMANDS, RENAMED_OPTIONS
from tests.cli.conftest import CommandResult


def commands() -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Yield the words of every command, and its options."""
    pending: list[tuple[tuple[str, ...], object]] = [((), get_command(app))]
    while pending:
        words, command = pending.pop()
        children = getattr(command, "commands", None)
        if children is None:
            parameters = vars(command)["params"]
            yield words, {name for p in parameters for name in (*p.opts, *p.secondary_opts)}
        else:
            pending += [((*words, name), child) for name, child in children.items()]


RENAMED = [
    (words, former)
    for words, options in commands()
    for former, current in RENAMED_OPTIONS.items()
    if current in options
]
"""Every former option of every command."""

# Benchmarks are commands that `evaluate` builds when they are called.
BENCHMARK_OPTIONS = ("--pictures", "--served", "--truth", "--form", "--key-variable")
RENAMED += [(("evaluate", "pope"), former) for former in BENCHMARK_OPTIONS]


def test_the_table_is_complete() -> None:
    """Every former option is renamed on a command, and no command still has it."""
    assert {former for _, former in RENAMED} == set(RENAMED_OPTIONS)
    assert len(RENAMED) > 50
    for words, options in commands():
        still_used = options & RENAMED_OPTIONS.keys()
        assert still_used == set(), words


@pytest.mark.parametrize(("words", "former"), RENAMED)
def test_a_former_option_names_the_current_one(
    call: Callable[..., CommandResult], words: tuple[str, ...], former: str
) -> None:
    """The error is one line, with the exit code of usage errors."""
    result = call(*words, former, "x")
    expected = f"error: no such option: {former}; did you mean {RENAMED_OPTIONS[former]}?\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("former", "setting"), [("--lr", "learning_rate"), ("--batch-size", "batch_size")]
)
def test_a_setting_given_as_an_option_is_answered_with_set(
    call: Callable[..., CommandResult], former: str, setting: str
) -> None:
    """Other tools have options for what --set changes; a command without --set does not suggest it."""
    result = call("train", "finetune", former, "1")
    expected = f"error: no such option: {former}; it is a setting: --set {setting}=VALUE\n"
    assert (result.returncode, result.stderr) == (2, expected)
    assert "--set" not in call("data", "mix", former, "1").stderr


@pytest.mark.parametrize(
    "command",
    [
        "data generate pairs x.csv",
        "data import captions x.csv",
        "data mix x.json",
        "data balance x.json",
        "data stats x.json",
        "evaluate compare x y",
    ],
)
def test_a_folder_is_no_file_to_write(call: Callable[..., CommandResult], command: str) -> None:
    """It is rejected before any input is read, as "." and an empty path are."""
    for folder in ("", "."):
        result = call(*command.split(), "--out", folder)
        expected = "error: --out . is a folder; give the path of a file\n"
        assert (result.returncode, result.stderr) == (2, expected)


@pytest.mark.parametrize(("group", "former"), RENAMED_COMMANDS)
def test_a_former_command_names_the_current_one(
    call: Callable[..., CommandResult], group: str, former: str
) -> None:
    """The error is one line, and the current command exists."""
    current = RENAMED_COMMANDS[group, former]
    result = call(group, former, "x")
    expected = f"error: no such command: {group} {former}; did you mean {group} {current}?\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", expected)
    assert call(group, current, "--help").returncode == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("data check x.json --picture y", "No such option: --picture"),
        ("deemo", "No such command 'deemo'. Did you mean 'demo'?"),
    ],
)
def test_other_unknown_names_are_reported_by_click(
    call: Callable[..., CommandResult], command: str, message: str
) -> None:
    """Only renamed options and commands have hints of their own."""
    result = call(*command.split())
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", [words for words, _ in commands()])
def test_help_has_examples_before_the_options(
    call: Callable[..., CommandResult], words: tuple[str, ...]
) -> None:
    """The examples of a command run that command."""
    result = call(*words, "--help")
    assert result.returncode == 0
    assert f"caldera {' '.join(words)}" in result.stdout.split("Options")[0].split("Examples")[-1]
