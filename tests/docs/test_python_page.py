"""The examples in docs/python.md run, in order, as a reader would type them."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from caldera.formats.model_folder import save_model_folder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assistant: LlavaBundle
) -> None:
    """Each block works with the names of those before it; the models end with the test."""
    save_model_folder(tmp_path / "runs/demo/model", assistant)
    rng = np.random.default_rng(1)
    for name in ("dog.jpg", "a.jpg", "b.jpg"):
        pixels = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 9
    # A random model does not end its answers.
    defaults = SamplingParams.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "max_new_tokens", 2)
    names: dict[str, object] = {}
    exec(compile("\n".join(blocks), PAGE.name, "exec"), names)
    for name in ("model", "small", "online"):
        names[name].close()  # type: ignore[attr-defined] # models
