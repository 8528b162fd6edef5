"""The baselines of captions: similar images give each other's captions, and the split is made once."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "caption_baselines.py"
CAPTIONS = {"red": "A red field under the sun .", "blue": "Much water in the deep sea ."}


def test_the_nearest_image_has_the_right_caption(
    vision_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With images of two colors it is right about all, and a single caption about some."""
    rows = ["image,caption"]
    for index in range(20):
        color = "red" if index % 3 else "blue"
        shade = (240 - index, 9, 9) if color == "red" else (9, 9, 240 - index)
        Image.new("RGB", (12, 9), shade).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{CAPTIONS[color]}")
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    arguments = ("--out", str(tmp_path / "out"), "--hold-out", "6", "--vision", str(vision_folder))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "captions.csv"), *arguments])

    runpy.run_path(str(SCRIPT), run_name="__main__")

    output = capsys.readouterr().out
    heading, nearest, frequent = output.splitlines()
    assert heading == "CIDEr-D of 6 images (14 to learn from)"
    assert "nearest training image" in nearest
    assert "always 'a red field under the sun'" in frequent
    assert float(nearest.split()[0]) > float(frequent.split()[0])
    held_out = (tmp_path / "out" / "held_out.csv").read_text()
    assert {caption in held_out for caption in CAPTIONS.values()} == {True}
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == output
    assert (tmp_path / "out" / "held_out.csv").read_text() == held_out
