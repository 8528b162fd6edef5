"""Browser and servers that the page's tests share; skipped where there is no Chromium."""

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
    """A server with the page, whose engine is slow."""
    enable_socket()
    with ServerProcess(model_folder, "--web", faults=["slow:0.05"]) as server:
        yield server


# Of the module: with a longer scope, its event loop would still run during later tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, which can resolve no host but this machine."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium; apt-get install chromium")
    enable_socket()
    resolver_rules = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=program,
            args=["--headless", "--no-sandbox", f"--host-resolver-rules={resolver_rules}"],
        )
        yield running
        running.close()


class Visitor:
    """User with a window at the page, which records all requests and errors."""

    def __init__(self, browser: Any, **settings: Any) -> None:  # noqa: ANN401 - playwright's
        """Open a window."""
        self.context = browser.new_context(**{"locale": "en-US", **settings})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.set_default_timeout(30_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, server: ServerProcess) -> None:
        """Open a server's page."""
        self.page.goto(f"http://127.0.0.1:{server.port}/")
        self.page.wait_for_selector(".chat textarea")

    def add_images(self, *files: Any) -> None:  # noqa: ANN401 - paths or playwright's payloads
        """Add images to the next question."""
        count = self.page.locator(".composer .thumb img").count() + len(files)
        self.page.set_input_files(".composer input[type=file]", list(files))
        self.page.wait_for_function(
            "n => document.querySelectorAll('.composer .thumb img').length === n", arg=count
        )

    def ask(self, question: str) -> None:
        """Enter a question and send it."""
        self.page.fill(".chat textarea", question)
        self.page.keyboard.press("Enter")

    def answer(self, number: int = 1) -> str:
        """Wait for the end of an answer and return its text."""
        article = self.page.locator("article").nth(number - 1)
        article.locator(".answer.stop, .answer.length, .answer.cancelled").first.wait_for()
        text: str = article.locator(".answer .text").first.inner_text()
        return text

    def external_requests(self) -> list[str]:
        """Return the URLs of other machines that were requested."""
        local = ("http://127.0.0.1:", "data:", "blob:")
        return [url for url in self.requests if not url.startswith(local)]


@pytest.fixture
def visitor(browser: Any, loopback: None) -> Iterator[Visitor]:  # noqa: ANN401 - playwright's
    """A user with a desktop window, in which no error and no external request may occur."""
    visitor = Visitor(browser, viewport={"width": 1100, "height": 820})
    yield visitor
    visitor.context.close()
    assert visitor.external_requests() == []
    assert visitor.errors == []
