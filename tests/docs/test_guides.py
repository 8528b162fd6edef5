"""The guides' commands are run as they are written, with tiny towers and images."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caldera.cli import app
from tests.datasets.photo_folders import write_class_folders

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "own_photos.md"


def guide_commands() -> list[list[str]]:
    """Return the words of each command of caldera in the guide, without its name."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words[0] == "caldera"]


def replaced(words: list[str], replacements: dict[str, str]) -> list[str]:
    """Return words with some of them replaced."""
    return [replacements.get(word, word) for word in words]


def test_the_imports_print_what_the_guide_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The printed lines have the guide's wording, and only other numbers and classes."""
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"hat": 9, "pants": 7})
    (tmp_path / "photos" / "LICENSE").write_text("CC0")
    imports = [words for words in guide_commands() if words[:2] == ["data", "import"]]
    assert len(imports) == 2
    for words in imports:
        result = CliRunner().invoke(app, replaced(words, {"300": "4"}))
        assert result.exit_code == 0, result.output
    [printed] = re.findall(
        r"^prints\n\n```text\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE
    )
    classes = r"classes: .*; give other words with --phrases|classes: .*\.\.\."
    for line in printed.splitlines():
        form = re.sub(r"\d+", r"\\d+", re.escape(re.sub(classes, "", line)))
        assert re.search(form, caplog.text + result.output), line


@pytest.mark.slow
def test_every_command_of_the_guide_runs(
    vision_folder: Path, language_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, in the order of the page, with random towers."""
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "photos", {"hat": 20, "pants": 16})
    (tmp_path / "new_photo.jpg").write_bytes((tmp_path / "photos" / "hat" / "0.png").read_bytes())
    towers = {"vision": str(vision_folder), "language": str(language_folder)}
    replacements = {
        "300": "6",
        "efficientnet-lite0": towers["vision"],
        "smollm2-135m-instruct": towers["language"],
    }
    commands = guide_commands()
    assert [words[0] for words in commands] == [
        "demo",
        "chat",
        "data",
        "data",
        "train",
        "train",
        "evaluate",
    ]
    for words in commands:
        extra = {
            "demo": [
                "--set=hold_out=6",
                *(f"--set={name}={path}" for name, path in towers.items()),
            ],
            "chat": ["--prompt", "What is this?", "--max-new-tokens", "3"],
        }.get(words[0], [])
        result = CliRunner().invoke(app, [*replaced(words, replacements), *extra])
        assert result.exit_code == 0, f"{words}: {result.output}"
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()
    assert (tmp_path / "runs" / "stage2" / "model").is_dir()
