"""Layout rules: imports point one way, files and functions stay small, names say what they hold."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "caldera"
GROUND = (
    "errors", "extras", "progress", "devices", "installation", "overrides", "interruption",
)  # fmt: skip
ORDER = (
    *GROUND, "files", "images", "conversation", "annotations", "scenes", "llm_client", "instructions", "datasets",
    "templates", "batches", "model", "formats", "training", "inference", "evaluation", "export", "chat", "server",
    "recipes", "pipelines", "cli", "__main__",
)  # fmt: skip
BANNED = {"utils", "util", "helpers", "common", "misc"}
MAX_FILE, MAX_FUNCTION = 400, 60
FLOORS = {name: max(0, ORDER.index(name) - len(GROUND) + 1) for name in ORDER}
"""Folders by their place on the way; the ground modules share floor 0 and may name each other."""


def layer(path: Path, root: Path) -> str:
    """Name the folder (or root module) that `path` belongs to."""
    return path.relative_to(root).parts[0].removesuffix(".py")


def imported_layers(tree: ast.Module) -> Iterator[str]:
    """Yield the layer of every import from caldera at any depth, and of every module that a string names.

    A process that is started with `-m caldera.x.y`, or with `-m caldera` for a command, depends on that module too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "caldera":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("caldera."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
            yield from (path[1] for path in paths if path[0] == "caldera" and len(path) > 1)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if match := re.fullmatch(r"caldera\.([a-z_]+)(\.[a-z_]+)*", node.value):
                yield match[1]
        elif isinstance(node, ast.List | ast.Tuple):
            words = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            if any(pair == ("-m", "caldera") for pair in itertools.pairwise(words)):
                yield "cli"


def faults(root: Path) -> list[str]:
    """List every breach of the rules under `root`, one line each."""
    return [fault for path in sorted(root.rglob("*.py")) for fault in faults_of(path, root)]


def faults_of(path: Path, root: Path) -> Iterator[str]:
    """Yield every breach of the rules in one file."""
    text = path.read_text()
    tree = ast.parse(text)
    here, relative = layer(path, root), path.relative_to(root)
    if BANNED & {word for part in relative.with_suffix("").parts for word in part.split("_")}:
        yield f"{relative}: name it for what it holds"
    if (length := len(text.splitlines())) > MAX_FILE:
        yield f"{relative}: {length} lines, over {MAX_FILE}"
    if not ast.get_docstring(tree):
        yield f"{relative}: no docstring saying what comes in and what goes out"
    if here != "__init__" and here not in FLOORS:
        yield f"{relative}: {here} has no place in ORDER"
    for name in sorted(set(imported_layers(tree)) & FLOORS.keys()):
        if FLOORS[name] > FLOORS.get(here, len(ORDER)):
            yield f"{relative}: {here} may not import {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION:
                yield f"{relative}:{node.lineno} {node.name}: {lines} lines"


def test_the_house_obeys_its_rules() -> None:
    """No file of the package breaks a rule, and there are files to look at."""
    assert len(list(ROOT.rglob("*.py"))) > 50
    assert faults(ROOT) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("model/utils.py", '"""Odds and ends."""\n', "name it for what it holds"),
        ("model/data_utils.py", '"""More odds."""\n', "name it for what it holds"),
        ("model/big.py", '"""Big."""\n' + "x = 1\n" * 400, "401 lines"),
        ("model/mute.py", "x = 1\n", "no docstring"),
        ("model/early.py", '"""Early."""\nfrom caldera.chat.session import S\n', "may not import"),
        ("errors.py", '"""Low."""\nimport caldera.model.llava\n', "may not import model"),
        ("model/run.py", '"""Run."""\nNAME = "caldera.server.serve"\n', "may not import server"),
        (
            "scenes/run.py",
            '"""Run."""\nCOMMAND = ["python", "-m", "caldera", "data"]\n',
            "may not import cli",
        ),
        ("stray/thing.py", '"""Lost."""\n', "no place in ORDER"),
        ("model/long.py", '"""Long."""\ndef f():\n' + "    x = 1\n" * 60, "61 lines"),
    ],
)
def test_each_rule_is_enforced(tmp_path: Path, file: str, text: str, expected: str) -> None:
    """Each kind of breach is reported once, by file."""
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)

    [fault] = faults(tmp_path)

    assert fault.startswith(file)
    assert expected in fault
