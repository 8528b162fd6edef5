"""What is told is sure: joined, the pieces are the whole answer, wherever tokens, characters and stops are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from caldera.inference.detokenizer import IncrementalDetokenizer


def written(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], stops: tuple[str, ...] = ()
) -> list[str]:
    """Return the pieces of an answer of these tokens, as far as it goes."""
    text = IncrementalDetokenizer(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(text.append(token))
        if text.stopped:
            return pieces
    return [*pieces, text.finish()]


@given(said=st.text(max_size=30), stop=st.text(min_size=1, max_size=4))
def test_the_pieces_are_the_text_before_the_stop(
    tokenizer: PreTrainedTokenizerFast, said: str, stop: str
) -> None:
    """For any text and stop, and a tokenizer of bytes: the text up to the stop, without white space around it."""
    ids = tokenizer(said, add_special_tokens=False).input_ids
    whole = str(tokenizer.decode(ids)).lstrip()
    pieces = written(tokenizer, ids, (stop,))
    assert "".join(pieces) == whole.split(stop)[0].rstrip()
    told = ""
    for piece in pieces:
        told += piece
        assert not any(told.endswith(stop[:n]) for n in range(1, len(stop))) or whole.startswith(
            told
        )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (" item #1 is a dog###Human: more", "item #1 is a dog"),
        (" a dog ##", "a dog ##"),
        ("#", "#"),
        ("\n ##a", "##a"),
        ("###", ""),
    ],
)
def test_what_may_begin_a_stop_waits(
    tokenizer: PreTrainedTokenizerFast, said: str, expected: str
) -> None:
    """It is told when it is clear that it does not, and left away when it does."""
    ids = tokenizer(said, add_special_tokens=False).input_ids
    pieces = written(tokenizer, ids, ("###",))
    assert "".join(pieces) == expected
    assert not any("#" in piece for piece in pieces[:-1] if expected.endswith("##"))


def test_of_several_stops_the_one_that_is_complete_first_counts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Whichever was named or began first, however the tokens are cut."""
    ids = tokenizer("one two three four", add_special_tokens=False).input_ids
    assert "".join(written(tokenizer, ids, ("three", "wo t", "two three"))) == "one t"
    assert "".join(written(tokenizer, ids, ("three", "two three"))) == "one"


def test_no_piece_ends_inside_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    """A character of four bytes is told when its last byte is there; a half one at the end is told as such."""
    ids = tokenizer("ab😀cd", add_special_tokens=False).input_ids
    assert written(tokenizer, ids) == ["a", "b", "", "", "", "😀", "c", "d", ""]
    assert "".join(written(tokenizer, ids[:4])) == "ab\N{REPLACEMENT CHARACTER}"


def test_white_space_at_the_end_waits(tokenizer: PreTrainedTokenizerFast) -> None:
    """It is told with what follows it, and never if nothing does."""
    ids = tokenizer("a \n b \n", add_special_tokens=False).input_ids
    assert "".join(written(tokenizer, ids)) == "a \n b"
