"""Files of LLaVA's eval.zip (its docs/Evaluation.md) in the third-party data."""

from pathlib import Path

import pytest


@pytest.fixture
def llava_eval(third_party: Path) -> Path:
    """Return the folder of LLaVA's eval.zip; skip the test if there is none."""
    folder = third_party / "llava_eval"
    if not folder.is_dir():
        pytest.skip(f"no files of LLaVA's eval.zip at {folder}")
    return folder
