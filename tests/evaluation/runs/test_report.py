"""Reports of runs: answers are text to a parser and to a browser, and only runs on the same items are compared."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from caldera.errors import InputError, UsageError
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.evaluation.answerers.remote_server import ServerAddress, ServerAnswerer
from caldera.evaluation.runs.report import (
    GALLERY_SIZE,
    compare_runs,
    read_run,
    write_run_report,
)
from caldera.evaluation.runs.run import evaluate
from tests import teacher_server
from tests.evaluation.questions import number_in, questions, right
from tests.teacher_server import Answer, Script, TeacherServer, completion

Serve = Callable[[Script], TeacherServer]


class Page(HTMLParser):
    """Tags, addresses and handlers of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag, its addresses and its handlers."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.sources.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def run(server: TeacherServer, photos: Path, out: Path, count: int = 12) -> Path:
    """Evaluate a server; return the run folder."""
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig())
    evaluate(questions(count), answerer, folder=photos, out=out)
    return out


def attack(target: str) -> Script:
    """Return a model whose answers contain active HTML."""
    markup = (
        f'</p><script>fetch("{target}/s")</script><img src="{target}/i" onerror="fetch(1)">'
        f'<link rel=stylesheet href="{target}/c"><style>@import "{target}/m";</style>{{{{ 7 * 7 }}}}'
    )

    def script(request: dict[str, Any], count: int) -> Answer:
        return completion(markup) if number_in(request) % 2 else right(request, count)

    return script


def test_markup_in_an_answer_is_text(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """H7: the page has no script, no handler, and no address but image data; the answer is visible."""
    run(serve(attack("http://127.0.0.1:9")), photos, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & {*page.tags}
    assert page.tags.count("style") == 1
    assert page.handlers == []
    assert page.sources
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "&lt;script&gt;fetch(" in text
    assert "{{ 7 * 7 }}" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "script-src" not in policy[1]


@pytest.mark.slow
def test_a_browser_requests_nothing(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """H7: Chromium shows the answers without a request to the attacker's server; an unescaped page makes one."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")

    def render(page: Path) -> str:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        command = [browser, *options]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=120
        ).stdout

    target = serve(lambda request, count: teacher_server.Answer({}))
    run(serve(attack(target.url)), photos, tmp_path / "out")
    dom = render(tmp_path / "out" / "report.html")
    assert "&lt;script&gt;fetch(" in dom
    assert target.count == 0
    (tmp_path / "naive.html").write_text(f'<p><img src="{target.url}/i"></p>')
    render(tmp_path / "naive.html")
    assert target.count > 0, "else nothing was rendered"


def test_the_report_shows_wrong_answers(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """With counts by state, the correct answer next to a wrong one, and images; a missing image is named."""
    out = run(serve(right), photos, tmp_path / "out")
    text = (out / "report.html").read_text()
    assert "right (11)" in text
    assert "wrong (1)" in text
    assert "correct: green" in text
    assert text.count("data:image/jpeg") == 6
    assert "91.67" in text
    assert "Wilson" in text
    (photos / "0.png").unlink()
    write_run_report(tmp_path / "again.html", [read_run(out)])
    assert "0.png cannot be shown" in (tmp_path / "again.html").read_text()


def test_the_gallery_is_bounded_and_has_all_states(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """Of many items it has the maximum number, the only wrong one among them; answers.jsonl has all."""
    out = run(serve(right), photos, tmp_path / "out", GALLERY_SIZE + 40)
    text = (out / "report.html").read_text()
    assert text.count("<li ") == GALLERY_SIZE
    assert "✗" in text
    assert f"{GALLERY_SIZE} of {GALLERY_SIZE + 40} items" in text
    assert len((out / "answers.jsonl").read_text().splitlines()) == GALLERY_SIZE + 40


def test_runs_are_compared_item_by_item(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Wins, losses and p are those of the items whose scores differ."""

    def worse(request: dict[str, Any], count: int) -> Answer:
        return completion("green" if number_in(request) < 6 else "red")

    first = read_run(run(serve(right), photos, tmp_path / "first"))
    second = read_run(run(serve(worse), photos, tmp_path / "second"))
    [comparison] = compare_runs([first, second])
    # right: all but 5; worse is right at 2, 5 (green), 6, 9 (red): loses 0 1 3 4 7 8 10 11, wins 5
    assert (comparison.all.wins, comparison.all.losses) == (1, 8)
    assert comparison.all.value == pytest.approx(-7 / 12)
    assert comparison.all.p_value == pytest.approx(2 * 10 / 2**9)
    assert {name: total.losses for name, total in comparison.categories.items()} == {
        "shape": 4,
        "colour": 4,
    }
    write_run_report(tmp_path / "both.html", [first, second])
    text = (tmp_path / "both.html").read_text()
    assert "second against first" in text
    assert "scores differ (9)" in text
    assert "all right (3)" in text


def test_runs_on_other_items_are_not_compared(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Other items, other images under the same ids, and folders that hold no run are rejected."""
    server = serve(right)
    first = read_run(run(server, photos, tmp_path / "first"))
    fewer = read_run(run(server, photos, tmp_path / "fewer", 10))
    with pytest.raises(
        UsageError, match=r"the same items: 2 are in only one of them, such as \['q10'"
    ):
        compare_runs([first, fewer])
    (photos / "1.png").write_bytes((photos / "0.png").read_bytes())
    other = read_run(run(server, photos, tmp_path / "other"))
    with pytest.raises(UsageError, match="questions, references or images differ"):
        write_run_report(tmp_path / "x.html", [first, other])
    with pytest.raises(InputError, match=r"has no results\.json"):
        read_run(photos)
    (photos / "results.json").write_text(json.dumps({"accuracy": 1}))
    with pytest.raises(InputError, match="is not of `caldera evaluate BENCHMARK`"):
        read_run(photos)
