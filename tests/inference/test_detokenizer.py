"""Emitted text is final: the pieces, joined, are the answer, wherever tokens, characters and stops are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from caldera.inference.detokenizer import IncrementalDetokenizer


def pieces_of(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], stops: tuple[str, ...] = ()
) -> list[str]:
    """Return the pieces of an answer of these tokens, up to a stop."""
    text = IncrementalDetokenizer(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(text.append(token))
        if text.stopped:
            return pieces
    return [*pieces, text.finish()]


@given(answer=st.text(max_size=30), stop=st.text(min_size=1, max_size=4))
def test_the_pieces_are_the_text_before_the_stop(
    tokenizer: PreTrainedTokenizerFast, answer: str, stop: str
) -> None:
    """For any text and stop, with a byte-level tokenizer: the text up to the stop, stripped."""
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    text = str(tokenizer.decode(ids)).lstrip()
    pieces = pieces_of(tokenizer, ids, (stop,))
    assert "".join(pieces) == text.split(stop)[0].rstrip()
    emitted = ""
    for piece in pieces:
        emitted += piece
        assert not any(emitted.endswith(stop[:n]) for n in range(1, len(stop))) or text.startswith(
            emitted
        )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (" item #1 is a dog###Human: more", "item #1 is a dog"),
        (" a dog ##", "a dog ##"),
        ("#", "#"),
        ("\n ##a", "##a"),
        ("###", ""),
    ],
)
def test_a_partial_stop_is_held_back(
    tokenizer: PreTrainedTokenizerFast, answer: str, expected: str
) -> None:
    """It is emitted once it cannot become a stop, and dropped if it does."""
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    pieces = pieces_of(tokenizer, ids, ("###",))
    assert "".join(pieces) == expected
    assert not any("#" in piece for piece in pieces[:-1] if expected.endswith("##"))


def test_the_stop_that_is_complete_first_ends_the_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Whichever is listed or starts first, however the tokens are cut."""
    ids = tokenizer("one two three four", add_special_tokens=False).input_ids
    assert "".join(pieces_of(tokenizer, ids, ("three", "wo t", "two three"))) == "one t"
    assert "".join(pieces_of(tokenizer, ids, ("three", "two three"))) == "one"


def test_no_piece_ends_inside_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    """A character of four bytes is emitted with its last byte; an incomplete one at the end as U+FFFD."""
    ids = tokenizer("ab😀cd", add_special_tokens=False).input_ids
    assert pieces_of(tokenizer, ids) == ["a", "b", "", "", "", "😀", "c", "d", ""]
    assert "".join(pieces_of(tokenizer, ids[:4])) == "ab\N{REPLACEMENT CHARACTER}"


def test_trailing_white_space_is_held_back(tokenizer: PreTrainedTokenizerFast) -> None:
    """It is emitted with the text after it, and dropped at the end."""
    ids = tokenizer("a \n b \n", add_special_tokens=False).input_ids
    assert "".join(pieces_of(tokenizer, ids)) == "a \n b"
