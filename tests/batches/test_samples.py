"""A conversation becomes a sample, or its error is raised before training starts."""

from pathlib import Path

import pytest

from caldera.batches.samples import SampleBuilder
from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.datasets.validation import validate_file
from caldera.errors import ImageError
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.template import find_template

MISSING = ("nowhere.png", "x" * 300 + ".png")
"""Names of images that do not exist; no file system accepts the second."""


def about(path: str) -> Conversation:
    """Return a dialogue about an image."""
    question = Turn("user", (ImageRef(path), "\nwhat is this?"))
    return Conversation("lost", (question, Turn("assistant", ("a dog",))))


@pytest.mark.parametrize("path", MISSING)
def test_a_missing_image_is_found_before_training(
    assistant: LlavaBundle, tmp_path: Path, path: str
) -> None:
    """The error names the record and the file, whatever its name is."""
    builder = SampleBuilder(
        tokenizer=assistant.tokenizer,
        template=find_template("vicuna_v1"),
        image_token_id=assistant.model.image_token_id,
        layout=assistant.processor.layout,
        count_tokens=assistant.model.count_tokens,
        max_length=512,
    )
    with pytest.raises(ImageError, match=r"record 'lost': .*\.png does not exist"):
        builder.build(about(path), tmp_path)


@pytest.mark.parametrize("path", MISSING)
@pytest.mark.parametrize("look", [False, True])
def test_validation_lists_a_missing_image(tmp_path: Path, path: str, look: bool) -> None:
    """With its images opened or only found."""
    write_conversations(tmp_path / "data.json", [about(path)])
    findings = validate_file(
        tmp_path / "data.json",
        tmp_path,
        decode_images=look,
        ignore=frozenset(),
        progress=NoProgress(),
    )
    assert [path in fault.reason for fault in findings.invalid] == [True]
