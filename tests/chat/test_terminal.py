"""Tests of the terminal: commands, errors, interrupts, and answers that cannot control it."""

import io
from pathlib import Path

import pytest

from caldera.chat.session import Session
from caldera.chat.terminal import answer_once, run_repl, strip_control_chars, strip_stream
from caldera.conversation import ImageRef
from tests.server.png_files import png


def test_the_repl_continues_after_errors(
    session: Session,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing image, a wrong command and a question: two lines of error, one answer, and a normal end."""
    typed = [
        "/image nowhere.png",
        "/imge x",
        f"/image '{photos / '3.png'}'",
        "what is it?",
        "/exit",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))

    run_repl(session, [photos / "0.png"])

    output = capsys.readouterr()
    assert "error: nowhere.png does not exist" in output.err
    assert "error: no command is called /imge; did you mean '/image'?" in output.err
    assert strip_control_chars(session.conversation.turns[1].text) in output.out
    assert len(session.conversation.images) == 2


def test_a_question_may_have_several_lines(
    session: Session, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backslash continues a line, three quotes enclose a block, and a path alone adds an image."""
    typed = ["what \\", "is it?", str(photos / "3.png"), '"""', "first", "", "second", '"""']
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    run_repl(session, [])
    questions = session.conversation.turns[0::2]
    assert questions[0].text == "what \nis it?"
    assert questions[1].parts == (ImageRef(str(photos / "3.png")), "\nfirst\n\nsecond")


def test_text_that_ends_like_a_file_is_a_question(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such file."""
    monkeypatch.setattr("sys.stdin", io.StringIO("what is in dog.png\n"))
    run_repl(session, [])
    assert session.conversation.turns[0].text == "what is in dog.png"


def test_an_interrupt_stops_the_answer_only(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During an answer, the text so far is stored and the session continues; at the prompt, Ctrl-C ends it."""

    class Pressed(io.StringIO):
        """Standard output that raises KeyboardInterrupt after its first text."""

        pressed = False

        def flush(self) -> None:
            if not Pressed.pressed and self.getvalue().strip():
                Pressed.pressed = True
                raise KeyboardInterrupt

    lines = iter(["one?", "two?"])

    def read_line(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("caldera.chat.terminal._read_line", read_line)
    out = Pressed()
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(KeyboardInterrupt):
        run_repl(session, [])
    assert "(stopped)" in out.getvalue()
    turns = session.conversation.turns
    assert [turn.text for turn in turns[0::2]] == ["one?", "two?"]


def test_a_full_conversation_is_told_with_its_remedy(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how many turns were dropped, and names /reset; each question has its answer."""
    questions = [f"{index} {'what do you see here? ' * 60}" for index in range(4)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions) + "\n"))
    run_repl(session, [])
    output = capsys.readouterr()
    [line] = {line for line in output.err.splitlines() if "full" in line}
    assert line == (
        "the conversation is full: dropped its 2 oldest turns, kept all images; /reset starts a new one"
    )
    assert session.conversation.turns[-2].text == questions[-1].strip()


@pytest.mark.parametrize("kind", ["missing", "folder", "URL", "not an image", "huge"])
def test_an_image_that_cannot_be_used_is_one_line(
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """The session goes on without it."""
    files = {
        "missing": ("a.png", None, "does not exist"),
        "folder": (".", None, "is a folder"),
        "URL": ("https://host.test/a.png", None, "is a web address"),
        "not an image": ("a.png", b"hello", "is a text file"),
        "huge": ("a.png", png(size=(60_000, 50_000)), "60000 x 50000"),
    }
    name, content, message = files[kind]
    if content:
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/image {name}\nwhat is it?\n"))
    run_repl(session, [])
    [error] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in error
    assert session.conversation.images == ()
    assert len(session.conversation.turns) == 2


def test_answer_once_prints_the_answer_alone(
    session: Session, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output has nothing but the answer."""
    answer_once(session, [photos / "0.png"], "what is this?")
    assert (
        capsys.readouterr().out
        == strip_control_chars(session.conversation.turns[1].text).strip() + "\n"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]52;c;aGk=\x07copied", "copied"),
        ("\x1bP1$q\x1b\\device", "device"),
        ("bell\x07 and\x9b31m more", "bell and31m more"),
        ("cut off\x1b]0;title", "cut off"),
    ],
)
def test_escape_sequences_are_removed(text: str, expected: str) -> None:
    """An answer cannot color, link, copy or ring, however it is split while it is generated."""
    assert strip_control_chars(text) == expected
    for size in (1, 2, 3):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert "".join(strip_stream(pieces)) == expected
