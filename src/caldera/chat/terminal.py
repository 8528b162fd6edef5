"""A session on a terminal: questions typed in, answers printed as they are made."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from caldera.chat.media import users_picture
from caldera.chat.session import Session
from caldera.errors import CalderaError, UsageError, did_you_mean

HELP = """/image FILE   show a picture (several: once for each), then ask
/reset        forget pictures and talk
/help         this
/exit         leave (also Ctrl-D)
Ctrl-C        stop the answer"""

_COMMANDS = ("/image", "/reset", "/help", "/exit")

_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def harmless(text: str) -> str:
    """Return text without escape sequences and control characters, which could act on the terminal."""
    return _CONTROLS.sub("", text)


def answer_once(session: Session, pictures: Sequence[Path], question: str) -> None:
    """Print the answer to one question, and nothing else, on standard output.

    Raises:
        CalderaError: It cannot be answered.
    """
    for picture in pictures:
        session.show(picture)
    print(harmless("".join(session.say(question)).strip()))  # noqa: T201 - this is the terminal


def talk(session: Session, pictures: Sequence[Path]) -> None:
    """Read questions and commands until the user leaves; a bad one is answered by a line, and the talk goes on."""
    for picture in pictures:
        session.show(picture)
        _say(f"showing {picture.name}")
    _say(
        "Ask about the picture, or type /help."
        if pictures
        else "Show a picture with /image FILE, or type /help."
    )
    while True:
        try:
            line = _typed().strip()
        except EOFError:
            _say("")
            return
        if line == "/exit":
            return
        try:
            if line.startswith("/"):
                _command(session, line)
            elif line:
                _answer(session, line)
        except CalderaError as error:
            _say(f"error: {error}")


def _typed() -> str:
    """Return the next line; the prompt stands on a terminal only, never among answers that go elsewhere.

    Raises:
        EOFError: There is none.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input("\nyou> ")
    return input()


def _command(session: Session, line: str) -> None:
    """Carry out a command.

    Raises:
        CalderaError: There is no such command, or its picture cannot be used.
    """
    name, _, rest = line.partition(" ")
    if name == "/image" and rest.strip():
        picture = users_picture(rest)
        session.show(picture)
        _say(f"showing {picture.name}")
    elif name == "/reset":
        session.reset()
        _say("all forgotten")
    elif name == "/help":
        _say(HELP)
    elif name == "/image":
        raise UsageError("/image needs a file: /image photo.jpg")
    else:
        raise UsageError(f"no command is called {name}; {did_you_mean(name, _COMMANDS)}")


def _answer(session: Session, question: str) -> None:
    """Print an answer as it comes; Ctrl-C stops the answer only."""
    pieces = session.say(question)
    try:
        for piece in pieces:
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined] # it is a generator
        sys.stdout.write(" (stopped)")
    sys.stdout.write("\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    """Print a line that is not an answer."""
    print(text, file=sys.stderr)  # noqa: T201 - this is the terminal
