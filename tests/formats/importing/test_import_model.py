"""Models are imported completely or not at all: the message names what does not fit, and nothing is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import SiglipImageProcessorPil

from caldera.devices import has_fast_bf16
from caldera.errors import UsageError
from caldera.formats.image_processor import describe_pixels
from caldera.formats.importing.request import ImportRequest
from caldera.formats.model_folder import load_model_folder
from caldera.formats.tokenizer import load_tokenizer
from tests.formats.conftest import Weights, Write, assert_rejected, run_import

LARGE_FOLDER = Path(__file__).parents[3] / "benchmarks" / "large_folder.py"


def damage(folder: Path, how: str) -> None:
    """Damage an original folder in one way."""
    first, second = sorted(folder.glob("pytorch_model-*.bin"))
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    weights = torch.load(first, weights_only=True)
    match how:
        case "a shard less":
            second.unlink()
        case "a shard cut":
            second.write_bytes(second.read_bytes()[:-400])
        case "outside":
            content["weight_map"]["lm_head.weight"] = "../stolen.bin"
        case "absolute":
            content["weight_map"]["lm_head.weight"] = "/etc/passwd"
        case "link":
            second.replace(folder.parent / "elsewhere.bin")
            second.symlink_to(folder.parent / "elsewhere.bin")
        case "twice":
            torch.save({**torch.load(second, weights_only=True), **weights}, second)
        case "no index of theirs":
            content["weight_map"]["lm_head.weight"] = second.name
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a shard less", r"pytorch_model-00002-of-00002\.bin is missing"),
        ("a shard cut", r"pytorch_model-00002-of-00002\.bin is broken or truncated"),
        ("outside", r"names '\.\./stolen\.bin', outside the folder; rejected"),
        ("absolute", "names '/etc/passwd', outside the folder; rejected"),
        ("link", "is a link to .*elsewhere.bin, outside the folder; rejected"),
        (
            "twice",
            r"pytorch_model-00002-of-00002\.bin holds lm_head.weight, which pytorch_model-00001",
        ),
        (
            "no index of theirs",
            "has lm_head.weight in pytorch_model-00002.*, but it is in pytorch_model-00001",
        ),
    ],
)
def test_a_damaged_folder_is_rejected(
    tmp_path: Path, write_original: Write, clip_folder: Path, how: str, message: str
) -> None:
    """The message names the file or the weight (faults E2, E5, E6)."""
    folder = write_original()
    damage(folder, how)
    assert_rejected(tmp_path, message, source=folder, vision=clip_folder)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"model.mm_projector.0.weight": torch.zeros(12, 9)},
            r"linear_1.weight of the projector .* \(12, 9\)",
        ),
        (
            {"model.mm_projector.4.weight": torch.zeros(2)},
            r"projector: missing \[\], unexpected \['4.weight'\]",
        ),
        ({"model.image_newline": torch.zeros(12)}, "image_newline"),
        ({"model.extra": torch.zeros(2)}, r"unexpected \['model.extra'\]"),
        ({"optimizer": torch.zeros(2)}, r"hold \['optimizer'\], which belong to no part"),
        (
            {"model.norm.weight": torch.zeros(12, dtype=torch.int8)},
            "norm.weight .* holds torch.int8",
        ),
    ],
)
def test_weights_of_another_model_are_rejected(
    tmp_path: Path,
    write_original: Write,
    clip_folder: Path,
    extra: Weights,
    message: str,
) -> None:
    """The message names an unexpected weight, another model's projector, quantized numbers (faults E2, E7)."""
    assert_rejected(tmp_path, message, source=write_original(extra), vision=clip_folder)


def test_the_hubs_cache_is_read_through_its_links(tmp_path: Path, llava_hf: Path) -> None:
    """Files of a Hugging Face cache are links to blobs; those links are followed, no others."""
    snapshot = tmp_path / "cache" / "snapshots" / "1a2b"
    blobs = tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(llava_hf.iterdir())):
        shutil.copy(file, blobs / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", f"{number:040x}"))
    run_import(tmp_path / "out", source=snapshot)
    assert load_model_folder(tmp_path / "out").card.source_digests.keys() == {"source"}


def test_a_linked_tokenizer_is_not_copied(
    tmp_path: Path, write_original: Write, clip_folder: Path
) -> None:
    """A `tokenizer.model` that links to another file of the user's is not copied into the new folder."""
    folder = write_original()
    load_tokenizer(folder).save_pretrained(folder)  # read instead of the link
    secret = tmp_path / "secret"
    secret.write_text("not for others")
    (folder / "tokenizer.model").unlink(missing_ok=True)
    (folder / "tokenizer.model").symlink_to(secret)
    assert_rejected(
        tmp_path, "is a link to .*secret, outside the folder", source=folder, vision=clip_folder
    )


@pytest.mark.parametrize("number", [0, -1, 10**9])
def test_an_absurd_multiple_of_rows_is_rejected(llava_hf: Path, number: int) -> None:
    """The message has the range; a table of a billion rows would fill the disk."""
    with pytest.raises(UsageError, match="it must be from 1 to 65,536"):
        ImportRequest(source=llava_hf, vocab_multiple=number)


def test_a_pickle_under_another_name_is_not_opened(tmp_path: Path, llava_hf: Path) -> None:
    """A file that torch.save wrote is not read as safetensors, whatever its suffix (fault E1)."""
    torch.save({"a": torch.zeros(2)}, llava_hf / "model.safetensors")
    assert_rejected(
        tmp_path, "is a zip archive, as torch.save writes, under another name", source=llava_hf
    )


def test_the_report_tells_what_happens_to_images(
    tmp_path: Path, llava_hf: Path, clip_folder: Path, vicuna_folder: Path
) -> None:
    """It names crop, squeeze or padding, as the written folder does it; padding is advised for what is cropped."""
    cropped = run_import(tmp_path / "a", source=llava_hf)
    assert cropped.images == "resized to 6 along the shorter side, cropped to the center of 6 x 6"
    assert any("--aspect pad" in note for note in cropped.notes)
    padded = run_import(tmp_path / "b", source=llava_hf, aspect="pad")
    assert padded.images == "padded to a square with the mean color, resized to 6 x 6"
    SiglipImageProcessorPil(size={"height": 6, "width": 6}).save_pretrained(clip_folder)
    squeezed = run_import(tmp_path / "c", vision=clip_folder, language=vicuna_folder)
    assert squeezed.images == "resized to 6 x 6 without keeping their proportions"
    assert not any("--aspect" in note for note in (*padded.notes, *squeezed.notes))
    for folder, report in (("a", cropped), ("b", padded), ("c", squeezed)):
        assert describe_pixels(load_model_folder(tmp_path / folder).processor) == report.images


def test_an_existing_folder_is_not_replaced(tmp_path: Path, llava_hf: Path) -> None:
    """An existing folder at --out is unchanged."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another --out"):
        run_import(tmp_path / "out", source=llava_hf)
    assert os.listdir(tmp_path / "out") == ["mine"]  # noqa: PTH208 - shorter


def command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run caldera in a subprocess."""
    return subprocess.run(
        [sys.executable, "-m", "caldera", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command_imports_a_model_that_answers(
    tmp_path: Path, write_original: Write, clip_folder: Path, photos: Path
) -> None:
    """`caldera import` prints the folder's name alone on stdout, and `caldera chat` answers with that folder."""
    imported = command(
        "import", write_original(), "--vision", clip_folder, "--template", "vicuna_v1",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout == f"{tmp_path / 'out'}\n"
    assert "full: 80 weights" in imported.stderr
    for dtype in ("auto", "float32"):
        answered = command(
            "chat", tmp_path / "out", "--image", photos / "1.png", "--prompt", "what is there?",
            "--max-new-tokens", 8, "--dtype", dtype,
        )  # fmt: skip
        assert answered.returncode == 0, answered.stderr


def test_the_command_fails_with_one_line(tmp_path: Path, write_original: Write) -> None:
    """Bad input exits with 3 and wrong usage with 2, with one line each, and nothing is written."""
    folder = write_original()
    missing = command("import", folder, "--template", "vicuna_v1", "--out", tmp_path / "out")
    assert missing.returncode == 2
    assert "give --vision" in missing.stderr
    damage(folder, "a shard less")
    broken = command("import", folder, "--template", "vicuna_v1", "--out", tmp_path / "out")
    assert broken.returncode == 3
    assert broken.stderr.count("\n") == 1
    assert "Traceback" not in broken.stderr
    assert not (tmp_path / "out").exists()
    assert command("import", "--out", tmp_path / "out").returncode == 2
    assert command("import", folder).returncode == 2


@pytest.mark.soak
def test_a_large_model_is_imported_and_answers_in_little_memory(tmp_path: Path) -> None:
    """Import of a 2 GB model takes less than half of its size, an answer its size plus that of Python and torch.

    A CPU that does not multiply bf16 answers in fp32: twice the size, and as much again packed.
    """
    finished = subprocess.run(
        [sys.executable, LARGE_FOLDER, "--scale", "0.5", "--work", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = re.findall(r"peak +([\d.]+) GiB", finished.stdout)
    [weights] = re.findall(r"weights +([\d.]+) GiB", finished.stdout)
    import_peak, chat_peak = map(float, peaks)
    assert import_peak < 0.5 * float(weights)
    assert chat_peak < (1 if has_fast_bf16() else 4) * float(weights) + 0.8
    assert list(tmp_path.iterdir()) == []
