"""A conversation becomes a sample, or its fault is said before training starts."""

from pathlib import Path

import pytest

from caldera.batches.checking import check_file
from caldera.batches.samples import SampleMaker
from caldera.batches.templates import find_template
from caldera.conversation import Conversation, Picture, Turn, write_conversations
from caldera.errors import PictureError
from caldera.model.folder import Assistant
from caldera.progress import Silent

MADE_UP = ("nowhere.png", "x" * 300 + ".png")
"""Names of pictures that are not there; no file system takes the second."""


def about(path: str) -> Conversation:
    """Return a dialogue about a picture."""
    asked = Turn("user", (Picture(path), "\nwhat is this?"))
    return Conversation("lost", (asked, Turn("assistant", ("a dog",))))


@pytest.mark.parametrize("path", MADE_UP)
def test_a_missing_picture_is_found_before_training(
    assistant: Assistant, tmp_path: Path, path: str
) -> None:
    """Whatever its name is, the record and the file are named."""
    maker = SampleMaker(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=512,
    )
    with pytest.raises(PictureError, match=r"record 'lost': .*\.png does not exist"):
        maker.make(about(path), tmp_path)


@pytest.mark.parametrize("path", MADE_UP)
@pytest.mark.parametrize("look", [False, True])
def test_checking_lists_a_missing_picture(tmp_path: Path, path: str, look: bool) -> None:
    """With its pictures opened or only found."""
    write_conversations(tmp_path / "data.json", [about(path)])
    findings = check_file(
        tmp_path / "data.json",
        tmp_path,
        open_pictures=look,
        ignore=frozenset(),
        progress=Silent(),
    )
    assert [path in fault.reason for fault in findings.bad] == [True]
