"""Tests of the terminal: commands, errors, interrupts, and answers that cannot control it."""

import io
from pathlib import Path

import pytest

from caldera.chat.session import Session
from caldera.chat.terminal import answer_once, run_repl, strip_control_chars
from caldera.conversation import ImageRef


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
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text so far is stored and the session continues; at the prompt, Ctrl-C only discards the input."""
    lines = iter(["one?", None, "two?"])

    def read_line(_: str) -> str:
        line = next(lines, "/exit")
        if line is None:
            raise KeyboardInterrupt
        return line

    class Pressed(io.StringIO):
        """Standard output that raises KeyboardInterrupt after its first text."""

        pressed = False

        def flush(self) -> None:
            if not Pressed.pressed and self.getvalue().strip():
                Pressed.pressed = True
                raise KeyboardInterrupt

    monkeypatch.setattr("caldera.chat.terminal._read_line", read_line)
    out = Pressed()
    monkeypatch.setattr("sys.stdout", out)
    run_repl(session, [])
    assert "(stopped)" in out.getvalue()
    turns = session.conversation.turns
    assert [turn.text for turn in turns[0::2]] == ["one?", "two?"]
    assert "/exit quits" in capsys.readouterr().err


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
        ("bell\x07 and\x9b31m more", "bell and31m more"),
    ],
)
def test_escape_sequences_are_removed(text: str, expected: str) -> None:
    """An answer cannot color, link, copy or ring."""
    assert strip_control_chars(text) == expected
