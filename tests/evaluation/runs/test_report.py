"""The report of runs: whatever a model said is text to a parser and to a browser; runs are compared fairly."""

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
    """What of a page could do something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, where it points and what it would run."""
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset", "poster"):
                self.sources.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def run(server: TeacherServer, photos: Path, out: Path, count: int = 12) -> Path:
    """Have a server answer a benchmark; return the run's folder."""
    answerer = ServerAnswerer(ServerAddress(url=server.url, model="m"), AnswerConfig())
    evaluate(questions(count), answerer, folder=photos, out=out)
    return out


def attack(target: str) -> Script:
    """Return a model that says what a page must not do."""
    said = (
        f'</p><script>fetch("{target}/s")</script><img src="{target}/i" onerror="fetch(1)">'
        f'<link rel=stylesheet href="{target}/c"><style>@import "{target}/m";</style>{{{{ 7 * 7 }}}}'
    )

    def script(request: dict[str, Any], count: int) -> Answer:
        return completion(said) if number_in(request) % 2 else right(request, count)

    return script


def test_markup_in_an_answer_is_text(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """H7: to a parser the page has no script, no handler, no address but the data of images; the answer is shown."""
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
    """H7: Chromium shows the answers and asks the attacker's server nothing, as it does of a page that is naive."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on this machine")

    def show(page: Path) -> str:
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]  # fmt: skip
        words += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    target = serve(lambda request, count: teacher_server.Answer({}))
    run(serve(attack(target.url)), photos, tmp_path / "out")
    shown = show(tmp_path / "out" / "report.html")
    assert "&lt;script&gt;fetch(" in shown
    assert target.count == 0
    (tmp_path / "naive.html").write_text(f'<p><img src="{target.url}/i"></p>')
    show(tmp_path / "naive.html")
    assert target.count > 0, "else nothing was shown"


def test_the_report_shows_what_went_wrong(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Counts by state, the right answer beside a wrong one, images inside; an image that is gone is named."""
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


def test_the_gallery_is_bounded_and_has_some_of_all(
    serve: Serve, photos: Path, tmp_path: Path
) -> None:
    """Of many items so many are shown as fit, the only wrong one among them; the file has them all."""
    out = run(serve(right), photos, tmp_path / "out", GALLERY_SIZE + 40)
    text = (out / "report.html").read_text()
    assert text.count("<li ") == GALLERY_SIZE
    assert "✗" in text
    assert f"{GALLERY_SIZE} of {GALLERY_SIZE + 40} items" in text
    assert len((out / "answers.jsonl").read_text().splitlines()) == GALLERY_SIZE + 40


def test_runs_are_compared_item_by_item(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Only the same items count; better, worse and p are of the items whose marks differ."""

    def worse(request: dict[str, Any], count: int) -> Answer:
        return completion("green" if number_in(request) < 6 else "red")

    first = read_run(run(serve(right), photos, tmp_path / "first"))
    second = read_run(run(serve(worse), photos, tmp_path / "second"))
    [compared] = compare_runs([first, second])
    # right: all but 5; worse is right at 2, 5 (green), 6, 9 (red): loses 0 1 3 4 7 8 10 11, wins 5
    assert (compared.all.wins, compared.all.losses) == (1, 8)
    assert compared.all.value == pytest.approx(-7 / 12)
    assert compared.all.p_value == pytest.approx(2 * 10 / 2**9)
    assert {kind: one.losses for kind, one in compared.kinds.items()} == {"shape": 4, "colour": 4}
    write_run_report(tmp_path / "both.html", [first, second])
    text = (tmp_path / "both.html").read_text()
    assert "second against first" in text
    assert "answers differ in mark (9)" in text
    assert "all right (3)" in text


def test_unlike_runs_are_not_compared(serve: Serve, photos: Path, tmp_path: Path) -> None:
    """Other items, other images under the same ids, and what is no run are refused."""
    server = serve(right)
    first = read_run(run(server, photos, tmp_path / "first"))
    fewer = read_run(run(server, photos, tmp_path / "fewer", 10))
    with pytest.raises(UsageError, match=r"the same items: 2 are in one only, among them \['q10'"):
        compare_runs([first, fewer])
    (photos / "1.png").write_bytes((photos / "0.png").read_bytes())
    other = read_run(run(server, photos, tmp_path / "other"))
    with pytest.raises(UsageError, match="questions, references or images differ"):
        write_run_report(tmp_path / "x.html", [first, other])
    with pytest.raises(InputError, match=r"holds no results\.json"):
        read_run(photos)
    (photos / "results.json").write_text(json.dumps({"accuracy": 1}))
    with pytest.raises(InputError, match="is not of `caldera evaluate TASK`"):
        read_run(photos)
