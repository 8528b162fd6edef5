"""Fixtures of the pipeline tests."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def long_language(language_folder: Path, tmp_path: Path) -> Path:
    """The random language model with room for long dialogues."""
    folder = tmp_path / "language"
    folder.mkdir()
    for file in language_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1200}))
    return folder
