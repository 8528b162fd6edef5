"""Tests of the registry of annotation readers."""

from pathlib import Path

import pytest

from caldera.annotations.registry import ANNOTATION_READERS, SourceOptions, read_annotations
from caldera.errors import InputError, UnknownNameError
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.generate import DEFAULT_KINDS, parse_kinds


def test_an_unknown_source_suggests_the_nearest(tmp_path: Path) -> None:
    """Names are case-sensitive."""
    with pytest.raises(
        UnknownNameError, match="no annotation source is called 'COCO'; known: coco"
    ):
        read_annotations("COCO", tmp_path, SkippedItems(), SourceOptions())
    with pytest.raises(UnknownNameError, match="did you mean 'pairs'"):
        read_annotations("pair", tmp_path, SkippedItems(), SourceOptions())


@pytest.mark.parametrize("name", ANNOTATION_READERS)
def test_every_reader_names_a_missing_path(name: str, tmp_path: Path) -> None:
    """A missing path is an InputError that names it; the default kinds of the source are valid."""
    with pytest.raises(InputError, match="nothing"):
        read_annotations(name, tmp_path / "nothing", SkippedItems(), SourceOptions())
    assert parse_kinds(DEFAULT_KINDS[name])


def test_options_are_passed_to_the_readers(tmp_path: Path) -> None:
    """COCO takes the split, pairs take the image folder."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_vol.json").write_text("{}")
    with pytest.raises(UnknownNameError, match="called 'val'; did you mean 'vol'"):
        read_annotations("coco", tmp_path, SkippedItems(), SourceOptions(split="val"))
    (tmp_path / "pairs.csv").write_text("image,caption\n1.jpg,A dog\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"image")
    options = SourceOptions(images=tmp_path / "elsewhere")
    [image] = read_annotations("pairs", tmp_path / "pairs.csv", SkippedItems(), options).images
    assert image.path == tmp_path / "elsewhere" / "1.jpg"
