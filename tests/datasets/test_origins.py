"""Records of the data sets on the Hub that a data file was made from."""

import json
from pathlib import Path

import pytest

from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.datasets.balancing import balance_file
from caldera.datasets.mixing import WeightedFile, mix_files
from caldera.datasets.origins import HubOrigin, describe_data_file, read_origins, write_origins
from caldera.errors import InputError

FIRST = HubOrigin(dataset="org/first", revision="a" * 40, file="data.json")
SECOND = HubOrigin(dataset="org/second", revision="b" * 40, file="")


def write_data(file: Path, answer: str) -> None:
    """Write a data file of three records."""
    turns = (Turn("user", (ImageRef("0.png"), "\nwhat?")), Turn("assistant", (answer,)))
    write_conversations(file, [Conversation(str(number), turns) for number in range(3)])


def test_a_mix_and_a_balanced_file_keep_the_origins_of_their_sources(tmp_path: Path) -> None:
    """A mix has those of all its files, each once; a file that is not from the Hub adds none."""
    first, second, own = (tmp_path / f"{name}.json" for name in ("first", "second", "own"))
    for file in (first, second, own):
        write_data(file, "A red dog.")
    write_origins(first, [FIRST])
    write_origins(second, [FIRST, SECOND])
    mix_files([WeightedFile(file) for file in (first, second, own)], tmp_path / "mix.json")
    assert read_origins(tmp_path / "mix.json") == (FIRST, SECOND)

    balance_file(second, tmp_path / "balanced.json", min_count=1)
    assert read_origins(tmp_path / "balanced.json") == (FIRST, SECOND)


def test_origins_belong_to_the_very_content_of_a_file(tmp_path: Path) -> None:
    """They are unknown for a file that was changed, and removed with the next file that has none."""
    file = tmp_path / "data.json"
    write_data(file, "A dog.")
    write_origins(file, [FIRST])
    assert describe_data_file(file, 3).origins == (FIRST,)
    write_data(file, "A cat.")
    assert read_origins(file) == ()
    write_origins(file, [])
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


@pytest.mark.parametrize("content", ["{", json.dumps({"sha256": "x"}), json.dumps([1])])
def test_a_broken_record_of_origins_is_rejected(tmp_path: Path, content: str) -> None:
    """It is named, with what to do."""
    file = tmp_path / "data.json"
    write_data(file, "A dog.")
    (tmp_path / "data.origins.json").write_text(content)
    with pytest.raises(InputError, match=r"data\.origins\.json is no record of origins; remove it"):
        read_origins(file)
