"""Terminal chat: reads questions and commands, prints answers as they are generated."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from caldera.chat.session import Session
from caldera.errors import CalderaError, ImageError, UsageError, did_you_mean
from caldera.images.decoding import resolve_image_path

HELP = """/image FILE   add an image to the next question (repeatable); dropping a file on the terminal does the same
/reset        remove all images and turns
/help         show this help
/exit         quit (also Ctrl-D)
\\ at the end  continue on the next line; \"\"\" starts and ends a question of several lines
arrow up      earlier questions
Ctrl-C        stop the answer; at the prompt, quit

A conversation that is too long for the model loses its oldest turns, but not their images."""

_COMMANDS = ("/image", "/reset", "/help", "/exit")

_MULTILINE = '"""'
"""Line that starts and ends a question of several lines."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")

_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?)?\Z")
"""The beginning of an escape sequence, at the end of a text that continues."""


def strip_control_chars(text: str) -> str:
    """Return text without escape sequences and control characters, which could control the terminal."""
    return _CONTROLS.sub("", text)


def strip_stream(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts without control characters; an escape sequence may be split between them."""
    unfinished = ""
    for text in texts:
        text = unfinished + text
        match = _UNFINISHED.search(text)
        end = match.start() if match else len(text)
        unfinished = text[end:]
        yield strip_control_chars(text[:end])
    yield strip_control_chars(unfinished)


def answer_once(session: Session, images: Sequence[Path], question: str) -> None:
    """Print the answer to one question, and nothing else, on standard output."""
    for image in images:
        session.add_image(image)
    print(strip_control_chars("".join(session.ask(question)).strip()))  # noqa: T201 - this is the terminal


def run_repl(session: Session, images: Sequence[Path]) -> None:
    """Read questions and commands until the user quits; an error prints one line and ends nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C at the prompt; during an answer, it stops the answer only.
    """
    for image in images:
        _add_image(session, image)
    _print_note(
        "Ask about the image, or type /help."
        if images
        else "Add an image with /image FILE, or type /help."
    )
    # Importing readline enables line editing and history.
    if sys.stdin.isatty() and find_spec("readline"):
        import_module("readline")
    while True:
        try:
            line = _read_question().strip()
        except EOFError:
            _print_note("")
            return
        if line == "/exit":
            return
        try:
            _handle(session, line)
        except CalderaError as error:
            _print_note(f"error: {error}")


def _read_question() -> str:
    """Return the next question, of one or several lines; raise EOFError at the end of the input."""
    line = _read_line("\nyou> ")
    if line.strip() == _MULTILINE:
        return "\n".join(iter(lambda: _read_line("...> "), _MULTILINE))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(_read_line("...> "))
    return "\n".join(lines)


def _read_line(prompt: str) -> str:
    """Return the next line; the prompt is printed on a terminal only, never among redirected answers."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(prompt)
    return input()


def _handle(session: Session, line: str) -> None:
    """Run a command, add an image whose file is the complete line, or answer a question."""
    if image := _dragged_image(line):
        _add_image(session, image)
    elif line.startswith("/"):
        _run_command(session, line)
    elif line:
        _answer(session, line)


def _dragged_image(line: str) -> Path | None:
    """Return the image whose file is the complete line; None for commands and questions that end like a file."""
    if "\n" in line or not line.strip("'\"").lower().endswith(_IMAGE_SUFFIXES):
        return None
    try:
        return resolve_image_path(line)
    except ImageError:
        return None


def _add_image(session: Session, image: Path) -> None:
    session.add_image(image)
    _print_note(f"added {image.name}")


def _run_command(session: Session, line: str) -> None:
    name, _, argument = line.partition(" ")
    if name == "/image" and argument.strip():
        _add_image(session, resolve_image_path(argument))
    elif name == "/image":
        raise UsageError("/image needs a file: /image photo.jpg")
    elif name == "/reset":
        session.reset()
        _print_note("conversation removed")
    elif name == "/help":
        _print_note(HELP)
    else:
        raise UsageError(f"no command is called {name}; {did_you_mean(name, _COMMANDS)}")


def _answer(session: Session, question: str) -> None:
    """Print an answer as it is generated; Ctrl-C stops the answer only."""
    try:
        if num_removed := session.make_room(question):
            _print_note(
                f"the conversation is full: dropped its {2 * num_removed} oldest turns, kept all images; /reset starts "
                "a new one"
            )
        with closing(session.ask(question)) as texts:
            for text in strip_stream(texts):
                sys.stdout.write(text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stdout.write(" (stopped)")
    sys.stdout.write("\n")
    sys.stdout.flush()


def _print_note(text: str) -> None:
    """Print a line that is not part of an answer."""
    print(strip_control_chars(text), file=sys.stderr)  # noqa: T201 - this is the terminal
