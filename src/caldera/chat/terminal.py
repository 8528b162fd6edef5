"""A session on a terminal: questions typed in, answers printed as they are made."""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from caldera.chat.session import Session
from caldera.errors import CalderaError, ImageError, UsageError, did_you_mean
from caldera.images.decoding import resolve_image_path

HELP = """/image FILE   show an image (several: once for each), then ask; a file dropped here alone does the same
/reset        forget images and talk
/help         this
/exit         leave (also Ctrl-D)
\\ at the end  goes on in the next line; so does all between two lines of \"\"\"
arrow up      earlier questions
Ctrl-C        stop the answer"""

_COMMANDS = ("/image", "/reset", "/help", "/exit")

_MULTILINE = '"""'
"""A line that begins and ends a question of several lines."""

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
"""Ends of names by which a dropped file is known for an image."""

_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def strip_control_chars(text: str) -> str:
    """Return text without escape sequences and control characters, which could act on the terminal."""
    return _CONTROLS.sub("", text)


def answer_once(session: Session, images: Sequence[Path], question: str) -> None:
    """Print the answer to one question, and nothing else, on standard output.

    Raises:
        CalderaError: It cannot be answered.
    """
    for image in images:
        session.add_image(image)
    print(strip_control_chars("".join(session.ask(question)).strip()))  # noqa: T201 - this is the terminal


def run_repl(session: Session, images: Sequence[Path]) -> None:
    """Read questions and commands until the user leaves; a bad one is answered by a line, and the talk goes on."""
    for image in images:
        session.add_image(image)
        _print_note(f"showing {image.name}")
    _print_note(
        "Ask about the image, or type /help."
        if images
        else "Show an image with /image FILE, or type /help."
    )
    _enable_readline()
    while True:
        try:
            said = _question().strip()
        except EOFError:
            _print_note("")
            return
        except KeyboardInterrupt:  # drops what was typed, and no more
            _print_note("(Ctrl-D or /exit leaves)")
            continue
        if said == "/exit":
            return
        try:
            _handle(session, said)
        except CalderaError as error:
            _print_note(f"error: {error}")


def _enable_readline() -> None:
    """Have the terminal edit lines and bring back earlier ones, where Python can."""
    if sys.stdin.isatty() and find_spec("readline"):
        import_module("readline")  # to import it is to use it


def _question() -> str:
    """Return the next question, of one line or several.

    Raises:
        EOFError: There is none.
    """
    line = _read_line("\nyou> ")
    if line.strip() == _MULTILINE:
        return "\n".join(iter(lambda: _read_line("...> "), _MULTILINE))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_read_line("...> "))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    """Return the next line; the prompt stands on a terminal only, never among answers that go elsewhere.

    Raises:
        EOFError: There is none.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)
    return input()


def _handle(session: Session, said: str) -> None:
    """Do what was typed: a command, an image's file alone, or a question.

    Raises:
        CalderaError: It cannot be done.
    """
    if dropped := _dragged_image(said):
        _show(session, dropped)
    elif said.startswith("/"):
        _command(session, said)
    elif said:
        _answer(session, said)


def _dragged_image(said: str) -> Path | None:
    """Return the image whose file is all that was typed."""
    if "\n" in said or not said.strip("'\"").lower().endswith(_IMAGES):
        return None
    try:
        return resolve_image_path(said)
    except ImageError:
        return None  # a command, or words that end like a file


def _show(session: Session, image: Path) -> None:
    """Put an image before the next question.

    Raises:
        UsageError: There are more than one question can name.
    """
    session.add_image(image)
    _print_note(f"showing {image.name}")


def _command(session: Session, line: str) -> None:
    """Carry out a command.

    Raises:
        CalderaError: There is no such command, or its image cannot be used.
    """
    name, _, rest = line.partition(" ")
    if name == "/image" and rest.strip():
        _show(session, resolve_image_path(rest))
    elif name == "/reset":
        session.reset()
        _print_note("all forgotten")
    elif name == "/help":
        _print_note(HELP)
    elif name == "/image":
        raise UsageError("/image needs a file: /image photo.jpg")
    else:
        raise UsageError(f"no command is called {name}; {did_you_mean(name, _COMMANDS)}")


def _answer(session: Session, question: str) -> None:
    """Print an answer as it comes; Ctrl-C stops the answer only."""
    pieces = session.ask(question)
    try:
        for piece in pieces:
            sys.stdout.write(strip_control_chars(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined] # it is a generator
        sys.stdout.write(" (stopped)")
    sys.stdout.write("\n")
    sys.stdout.flush()


def _print_note(text: str) -> None:
    """Print a line that is not an answer."""
    print(text, file=sys.stderr)  # noqa: T201 - this is the terminal
