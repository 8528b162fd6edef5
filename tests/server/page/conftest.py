"""Browsers and pages that tests share; skipped where there is no Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_socket import enable_socket

from tests.server.server_process import ServerProcess

pytest.importorskip("gradio", reason="no page: pip install 'caldera[web]'")


@pytest.fixture(scope="session")
def web_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server with the page."""
    enable_socket()
    with ServerProcess(model_folder, "--web") as server:
        yield server


@pytest.fixture(scope="session")
def slow_server(model_folder: Path) -> Iterator[ServerProcess]:
    """A server with the page, whose model takes some time for each token."""
    enable_socket()
    with ServerProcess(model_folder, "--web", faults=["slow:0.05"]) as server:
        yield server


@pytest.fixture(scope="module")  # else its event loop runs on under the tests that follow
def browser() -> Iterator[Any]:
    """Chromium, which finds no host but this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium; apt-get install chromium")
    enable_socket()
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--headless",
                "--no-sandbox",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        yield running
        running.close()


class Visitor:
    """Someone at a page, who notes all that the browser asks for."""

    def __init__(self, browser: Any, **settings: Any) -> None:  # noqa: ANN401 - playwright's
        """Open a window of its own."""
        self.context = browser.new_context(**{"locale": "en-US", **settings})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.set_default_timeout(30_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, server: ServerProcess) -> None:
        """Go to a server's page."""
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        self.page.wait_for_selector(".talk textarea")

    def show(self, *files: Any) -> None:  # noqa: ANN401 - paths or playwright's payloads
        """Add images to the next question."""
        before = self.page.locator(".composer .thumb img").count()
        self.page.set_input_files(".composer input[type=file]", list(files))
        self.page.wait_for_function(
            "n => document.querySelectorAll('.composer .thumb img').length === n",
            arg=before + len(files),
        )

    def ask(self, question: str) -> None:
        """Type a question and send it."""
        self.page.fill(".talk textarea", question)
        self.page.keyboard.press("Enter")

    def answer(self, number: int = 1) -> str:
        """Wait for the end of an answer and return its words."""
        article = self.page.locator("article").nth(number - 1)
        article.locator(".answer.stop, .answer.length, .answer.cancelled").first.wait_for()
        text: str = article.locator(".answer .text").first.inner_text()
        return text

    def outside(self) -> list[str]:
        """List what was asked of others than this machine."""
        own = ("http://127.0.0.1:", "data:", "blob:")
        return [url for url in self.asked if not url.startswith(own)]


@pytest.fixture
def visitor(browser: Any, loopback: None) -> Iterator[Visitor]:  # noqa: ANN401 - playwright's
    """Someone at a desk, whom nothing on the page may fail and who asks nothing of the outside."""
    one = Visitor(browser, viewport={"width": 1100, "height": 820})
    yield one
    one.context.close()
    assert one.outside() == []
    assert one.errors == []
