"""Accessibility of the page: axe-core's rules on phones, zoomed and in dark mode, and use by keyboard alone."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.page.conftest import Visitor
from tests.server.server_process import ServerProcess, make_image

pytestmark = pytest.mark.slow

RUN_AXE = """async () => (await axe.run({ resultTypes: ["violations"] })).violations
    .filter(({ impact }) => ["serious", "critical"].includes(impact))
    .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target} ${node.failureSummary}`))"""

WINDOWS: dict[str, dict[str, Any]] = {
    "phone": {"viewport": {"width": 390, "height": 780}, "has_touch": True, "is_mobile": True},
    "200 % zoom": {"viewport": {"width": 640, "height": 430}, "device_scale_factor": 2},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
}


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """An image file."""
    path = tmp_path / "scene.png"
    path.write_bytes(make_image(1, (40, 30)))
    return path


class Checks:
    """Checks of one window in its current state."""

    def __init__(self, page: Any, script: str) -> None:  # noqa: ANN401 - playwright's
        """Check `page` by axe-core's `script`."""
        self.page = page
        page.evaluate(script)

    def find_no_faults(self) -> None:
        """Fail if axe-core finds a serious or critical fault, or something is wider than the window or the composer."""
        self.page.evaluate("document.getAnimations().forEach((animation) => animation.cancel())")
        assert self.page.evaluate(RUN_AXE) == []
        overflows = """["html", ".composer"].filter((selector) => {
            const { scrollWidth, clientWidth } = document.querySelector(selector);
            return scrollWidth > clientWidth;
        })"""
        assert self.page.evaluate(overflows) == []

    def is_visible(self, selector: str) -> None:
        """Wait until an element is inside of the window and not below the composer."""
        self.page.wait_for_selector(selector)
        self.page.wait_for_function(
            """(selector) => {
                const { left, top, right, bottom } = document.querySelector(selector).getBoundingClientRect();
                const corners = [[left + 9, top + 9], [right - 9, bottom - 9]];
                return corners.every((point) => document.elementFromPoint(...point)?.matches(selector));
            }""",
            arg=selector,
        )


@pytest.mark.parametrize("window", WINDOWS)
def test_no_view_has_a_serious_fault(
    browser: Any,  # noqa: ANN401 - playwright's
    web_server: ServerProcess,
    loopback: None,
    scene: Path,
    window: str,
) -> None:
    """Neither contrast nor names, roles and landmarks; attention maps open inside of the window."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="no axe-playwright-python")
    visitor = Visitor(browser, **WINDOWS[window])
    page = visitor.page
    visitor.open(web_server)
    checks = Checks(page, axe.AXE_SCRIPT)
    checks.find_no_faults()
    visitor.ask("what do you see")
    visitor.answer()
    visitor.add_images(scene)
    visitor.ask("what is it " * 20)
    visitor.answer(2)
    page.click("button.toggle-attention")
    checks.is_visible(".maps canvas")
    checks.find_no_faults()
    page.click("button.edit")
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": scene.read_bytes()[:50]}
    page.set_input_files(".composer input[type=file]", [broken])
    page.wait_for_selector(".banner.error")
    page.click("#settings button")
    page.wait_for_selector("#settings input[type=range]")
    checks.find_no_faults()
    page.click("button.history")
    page.wait_for_selector("dialog[open] li")
    checks.find_no_faults()
    visitor.context.close()
    assert visitor.external_requests() == []
    assert visitor.errors == []


def test_a_placeholder_looks_unlike_text(visitor: Visitor, web_server: ServerProcess) -> None:
    """It has another color and another style."""
    visitor.open(web_server)
    styles = """[null, "::placeholder"].map((part) => {
        const { color, fontStyle } = getComputedStyle(document.querySelector(".chat textarea"), part);
        return [color, fontStyle];
    })"""
    (text_color, text_style), (color, style) = visitor.page.evaluate(styles)
    assert color != text_color
    assert (text_style, style) == ("normal", "italic")


class Keyboard:
    """User without a mouse."""

    def __init__(self, page: Any) -> None:  # noqa: ANN401 - playwright's
        """Use `page`."""
        self.page = page

    def focus(self, key: str) -> None:
        """Press Tab until the element of a key has the focus, which must be visible."""
        focused = "document.activeElement.dataset.key"
        for _ in range(60):
            if self.page.evaluate(focused) == key:
                break
            self.page.keyboard.press("Tab")
        assert self.page.evaluate(focused) == key
        self.page.wait_for_function(
            """() => {
                const { left, top, width, height } = document.activeElement.getBoundingClientRect();
                const shown = document.elementFromPoint(left + width / 2, top + height / 2);
                return document.activeElement.contains(shown);
            }"""
        )

    def press(self, key: str) -> None:
        """Press Enter on the element of a key."""
        self.focus(key)
        self.page.keyboard.press("Enter")

    def wait_for_focus(self, key: str) -> None:
        """Wait until the element of a key has the focus."""
        self.page.wait_for_function("key => document.activeElement.dataset.key === key", arg=key)


def test_the_page_can_be_used_by_keyboard(
    visitor: Visitor, slow_server: ServerProcess, scene: Path
) -> None:
    """Attach, ask, stop, copy, show attention, edit, start anew and reopen; the focus never gets lost."""
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    # A chooser that opens before playwright has turned its interception on is lost, so the listener comes first.
    visitor.page.on("filechooser", lambda chooser: chooser.set_files(scene))
    visitor.open(slow_server)
    user = Keyboard(visitor.page)
    ask_and_stop(user)
    copy_and_show_attention(user)
    edit_and_restore(user)
    start_anew_and_reopen(user)


def ask_and_stop(user: Keyboard) -> None:
    """Ask about an image, and stop the answer."""
    user.press("add")
    user.page.wait_for_selector(".thumb img")
    user.wait_for_focus("question")
    user.page.keyboard.type("what is it")
    user.page.keyboard.press("Enter")
    user.page.wait_for_selector(".answer.writing")
    user.press("stop")
    user.page.wait_for_selector(".answer.cancelled")
    user.wait_for_focus("question")


def copy_and_show_attention(user: Keyboard) -> None:
    """Copy the answer, and select a word of the attention view."""
    user.press("copy-0-0")
    user.page.wait_for_function("document.querySelector('.copy').innerText === 'Copied'")
    copied = user.page.evaluate("navigator.clipboard.readText()")
    # Text between backticks is rendered without them.
    assert copied.replace("`", "") == user.page.inner_text(".answer .text").replace("`", "") != ""
    user.press("attention-0-0")
    user.page.wait_for_selector(".maps canvas")
    user.page.keyboard.press("Tab")
    user.page.keyboard.press("Tab")
    user.page.keyboard.press("Space")
    user.page.wait_for_selector('.word[aria-pressed="true"]:focus')


def edit_and_restore(user: Keyboard) -> None:
    """Edit the question, and restore it by Escape."""
    user.press("edit")
    user.wait_for_focus("question")
    user.page.keyboard.type(" now")
    user.page.keyboard.press("Escape")
    user.wait_for_focus("edit")
    assert user.page.inner_text(".question .text") == "what is it"
    assert user.page.locator(".maps canvas").count() == 1, "a redraw keeps the maps"


def start_anew_and_reopen(user: Keyboard) -> None:
    """Start a new conversation, and open the one before from the history."""
    user.press("new")
    user.wait_for_focus("question")
    user.press("history")
    user.page.wait_for_selector("dialog[open]")
    user.press("open-0")
    user.page.wait_for_selector("article")
    user.wait_for_focus("question")
    assert user.page.inner_text(".question .text") == "what is it"
