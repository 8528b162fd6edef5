"""The docs are run: their examples, records, commands and trees are compared with what is there."""

import doctest
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from caldera.cli import app
from caldera.conversation import json_schema, read_conversations
from caldera.errors import ConversationError
from caldera.templates.registry import TEMPLATES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCE = ROOT / "src" / "caldera"
SMALLEST = (
    "scenes.train=40", "scenes.held_out=4", "questions.captioned=2", "pretrain.batch_size=8",
    "finetune.batch_size=8", "pretrain.max_steps=2", "finetune.max_steps=2",
)  # fmt: skip
"""Settings under which the whole demo takes seconds."""


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page."""
    matches: list[str] = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return matches


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line in a folder, with this Python's caldera."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        command, shell=True, cwd=folder, env={"PATH": path}, capture_output=True, text=True
    )


def test_every_page_was_met() -> None:
    """The pages that these tests go through are there."""
    assert {page.name for page in PAGES} >= {
        "README.md", "CONTRIBUTING.md", "tour.md", "shapes.md", "data.md", "adding.md", "recipes.md", "templates.md",
        "engine.md", "install.md", "quickstart.md", "train.md", "python.md", "cli.md", "CHANGELOG.md", "SECURITY.md",
    }  # fmt: skip


@pytest.mark.slow
def test_the_tours_values_are_the_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example on the page prints what stands below it."""
    monkeypatch.chdir(tmp_path)
    failures, met = doctest.testfile(
        str(ROOT / "docs" / "tour.md"), module_relative=False, optionflags=doctest.REPORT_NDIFF
    )
    assert met > 40
    assert failures == 0


def test_the_published_schema_is_the_codes() -> None:
    """docs/conversation.schema.json says what the reader takes."""
    published = json.loads((ROOT / "docs" / "conversation.schema.json").read_text())
    assert published == json_schema()


def test_the_commands_on_the_recipes_page_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names a command and options that exist; those that train lack only what must be brought."""
    monkeypatch.chdir(tmp_path)
    sessions = blocks((ROOT / "docs" / "recipes.md").read_text(), "sh")
    lines = [line for session in sessions for line in session.replace("\\\n", " ").splitlines()]
    assert len(lines) == 5
    for line in lines:
        program, *words = line.split("  #")[0].split()
        result = CliRunner().invoke(app, words)
        assert program == "caldera"
        assert result.exit_code == (2 if words[0] == "train" else 0), result.output
        if words[0] == "train":
            lacks = (
                "no packaged tower, folder"
                if "--vision" in words
                else "needs files that caldera does not download"
            )
            assert lacks in result.output


def test_generated_pages_are_current() -> None:
    """Each page that is made from code is what `make docs` would write now."""
    pages = runpy.run_path(str(Path(__file__).with_name("write.py")))["generated_pages"]()
    assert {
        "docs/templates.md",
        "docs/tree.md",
        "docs/cli.md",
        "README.md",
        "docs/api/index.md",
    } <= pages.keys()
    outdated = [name for name, text in pages.items() if (ROOT / name).read_text("utf-8") != text]
    assert outdated == [], "run: make docs"
    assert all(f"| {name} |" in pages["docs/templates.md"] for name in TEMPLATES)


def test_the_records_on_the_data_page_can_be_read(tmp_path: Path) -> None:
    """The examples pass the schema and the reader; the first shows none, one and two images."""
    num_images = []
    for example in blocks((ROOT / "docs" / "data.md").read_text(), "json"):
        (tmp_path / "data.json").write_text(example)
        jsonschema.validate(json.loads(example), json_schema())
        num_images.append(
            [
                len(conversation.images)
                for conversation in read_conversations(tmp_path / "data.json")
            ]
        )
    assert num_images == [[1, 2, 0], [1]]


def test_the_error_on_the_data_page_is_the_real_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mark too many is answered with just that line."""
    page = (ROOT / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    records = json.loads(blocks(page, "json")[0])
    broken = {**records[0], "conversations": [dict(turn) for turn in records[0]["conversations"]]}
    broken["conversations"][0]["value"] += " <image>"
    Path("data.json").write_text(json.dumps([*records, broken]))
    with pytest.raises(ConversationError) as caught:
        read_conversations(Path("data.json"))
    assert str(caught.value) in page


def test_links_lead_somewhere() -> None:
    """Every relative link of every page has a target."""
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)#]+)", re.sub(r"`[^`\n]*`", "", page.read_text()))
        if "://" not in link
    ]
    assert len(links) > 5
    assert [f"{page}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def test_the_tree_page_names_every_module() -> None:
    """docs/tree.md lists each module of the package once, and no summary is missing or cut."""
    [tree] = blocks((ROOT / "docs" / "tree.md").read_text("utf-8"), "text")
    modules = [
        path for path in SOURCE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
    ]
    assert tree.count(".py") == len(modules) > 200
    assert [line for line in tree.splitlines() if len(line.split()) < 3] == []


def test_the_chinese_readme_has_the_structure_of_the_english_one() -> None:
    """Headings, code blocks, tables, images and links of both follow each other in the same order."""

    def structure(name: str) -> list[str]:
        """Return one entry for each structural element, without its text."""
        page = (ROOT / name).read_text("utf-8")
        matches: list[str] = []
        is_code = False
        for line in re.sub(r"<!--.*?-->\n", "", page).splitlines():
            if heading := re.match(r"#+ ", line):
                matches.append(heading.group())
            elif line.startswith("|"):
                matches.append(f"row of {line.count('|') - 1}")
            elif line.startswith("```"):
                matches.append(line)
                is_code = not is_code
            elif is_code:
                matches.append(line.split("  #")[0].strip())
        return matches + re.findall(r"\]\(([^)]*)\)", page)

    assert structure("README.zh-CN.md") == structure("README.md")
    assert len(structure("README.md")) > 80


def test_the_readme_is_short() -> None:
    """A newcomer reads it to the end."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_make_has_every_verb_that_is_named() -> None:
    """`make demo` and the like exist."""
    command = re.compile(r"(?:`|^)make ([a-z-]+)[ `]", re.MULTILINE)
    verbs = {verb for page in PAGES for verb in command.findall(page.read_text())}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check"} <= verbs
    assert verbs <= targets


@pytest.mark.slow
def test_the_readmes_commands_work(tmp_path: Path) -> None:
    """All `caldera` commands, one after the other, at the smallest setting, from an empty folder."""
    sessions = blocks((ROOT / "README.md").read_text(), "sh")
    commands = [
        line.split("  #")[0].strip()
        for session in sessions
        for line in session.replace("\\\n", " ").splitlines()
        if line.startswith("caldera ")
    ]
    assert len(commands) >= 6
    assert commands[0] == "caldera demo"
    for command in commands:
        if command == "caldera demo":
            command += "".join(f" --set {setting}" for setting in SMALLEST)
        elif command.startswith("caldera train"):
            command += " --set max_steps=2 --set batch_size=4"
        result = run(command, tmp_path)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
