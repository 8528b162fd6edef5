"""Damaged and hostile model folders: exit code 3, one line, and nothing of them is run or loaded (faults E1 to E7)."""

import json
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from caldera.formats.assemble import assemble
from caldera.formats.lora_adapter import digest_base, save_adapter
from caldera.formats.model_folder import save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import add_lora, target_layers
from caldera.model.lora_config import LoraConfig
from tests.cli.conftest import CommandResult

WEIGHTS = "model.safetensors"
NAME = "multi_modal_projector.linear_1.weight"
INDEX = "model.safetensors.index.json"


class _Sentinel:
    """Object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self._file,)


@pytest.fixture(scope="module")
def saved(
    vision_folder: Path, language_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder that each test copies."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model_folder(folder, assemble(vision_folder, language_folder, seed=3))
    return folder


def edit_json(file: Path, **changes: object) -> None:
    """Change settings in a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}))


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of the weights, and keep the data."""
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Add, replace and remove weights; `__` in a name stands for a point."""
    weights = load_file(folder / WEIGHTS)
    for name, weight in changes.items():
        if weight is None:
            del weights[name.replace("__", ".")]
        else:
            weights[name.replace("__", ".")] = weight
    save_file(weights, folder / WEIGHTS)


def only_a_pickle(folder: Path, name: str) -> None:
    """Replace the weights by a pickle that creates a file."""
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(_Sentinel(folder / "sentinel")))


def shards(folder: Path, **changes: str) -> None:
    """Split the weights into two files with an index, and change where the index has some."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in files.items() for name in part}
    weight_map |= {name.replace("__", "."): file for name, file in changes.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def linked(folder: Path) -> None:
    """Make the weights a link to a file elsewhere."""
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def without_shard(folder: Path) -> None:
    """Remove one of two shards."""
    shards(folder)
    (folder / "b.safetensors").unlink()


def with_equal_shards(folder: Path) -> None:
    """Make the second shard a copy of the first."""
    shards(folder)
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")


Damage = Callable[[Path], object]
LINEAR = {"multi_modal_projector__linear_1__weight": torch.zeros(3, 5)}
INTEGERS = {"multi_modal_projector__linear_1__weight": torch.zeros(12, 10, dtype=torch.int8)}
HUGE = struct.pack("<Q", 1 << 60)

FAULTS: dict[str, tuple[Damage, str]] = {
    "E1 pickle .bin": (
        lambda f: only_a_pickle(f, "pytorch_model.bin"),
        r"pytorch_model.bin is a pickle.*caldera import",
    ),
    "E1 pickle .pt": (
        lambda f: only_a_pickle(f, "model.pt"),
        r"model.pt is a pickle.*caldera import",
    ),
    "E1 pickle .pth": (
        lambda f: only_a_pickle(f, "model.pth"),
        r"model.pth is a pickle.*caldera import",
    ),
    "E1 pickle by content": (
        lambda f: only_a_pickle(f, WEIGHTS),
        r"is a pickle, under another name.*caldera import",
    ),
    "E1 archive by content": (
        lambda f: torch.save({}, f / WEIGHTS),
        r"is a zip archive.*caldera import",
    ),
    "E2 cut": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]),
        "is broken or truncated",
    ),
    "E2 header of 2^60": (
        lambda f: (f / WEIGHTS).write_bytes(HUGE + b"{}"),
        "is broken or truncated",
    ),
    "E2 overlap": (
        lambda f: edit_header(f, lambda h: h[NAME].update(data_offsets=[0, 480])),
        "is broken or truncated",
    ),
    "E2 missing": (
        lambda f: edit_weights(f, **dict.fromkeys(LINEAR)),
        r"missing \['linear_1.weight'\]",
    ),
    "E2 shape": (lambda f: edit_weights(f, **LINEAR), r"has shape \(3, 5\); it needs \(12, 10\)"),
    "E2 dtype": (
        lambda f: edit_header(f, lambda h: h[NAME].update(dtype="I32")),
        r"linear_1.weight .* holds torch.int32",
    ),
    "E2 unknown dtype": (
        lambda f: edit_header(f, lambda h: h[NAME].update(dtype="F8_E4M3")),
        "is broken or truncated",
    ),
    "E2 extra": (
        lambda f: edit_weights(f, language_model__x=torch.zeros(2)),
        r"unexpected \['x'\]",
    ),
    "E2 extra part": (
        lambda f: edit_weights(f, x=torch.zeros(2)),
        r"hold \['x'\], which belong to no part",
    ),
    "E2 duplicate": (with_equal_shards, r"b.safetensors holds .*, which a.safetensors holds too"),
    "E3 auto_map": (
        lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "x.Y"}),
        "'auto_map', which would run code",
    ),
    "E3 tokenizer's auto_map": (
        lambda f: edit_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "'auto_map', which would run code",
    ),
    "E3 attention": (
        lambda f: edit_json(f / "config.json", _attn_implementation_internal="a/b"),
        "_attn_implementation_internal', which would run",
    ),
    "E3 remote code": (
        lambda f: edit_json(f / "config.json", trust_remote_code=True),
        "'trust_remote_code', which would run code",
    ),
    "E3 negative": (
        lambda f: edit_json(
            f / "config.json", text_config={"model_type": "llama", "hidden_size": -1}
        ),
        "has hidden_size -1; sizes are",
    ),
    "E3 huge": (
        lambda f: edit_json(
            f / "config.json", text_config={"model_type": "llama", "vocab_size": 10**12}
        ),
        "has vocab_size 1000000000000",
    ),
    "E3 NaN": (
        lambda f: edit_json(f / "config.json", rope_theta=float("nan")),
        "rope_theta nan, which is not a finite number",
    ),
    "E5 parent": (
        lambda f: shards(f, multi_modal_projector__linear_1__weight="../x.safetensors"),
        "names '../x.safetensors', outside the folder",
    ),
    "E5 absolute": (
        lambda f: shards(f, multi_modal_projector__linear_1__weight="/etc/passwd"),
        "names '/etc/passwd', outside the folder",
    ),
    "E5 link": (linked, r"is a link to .*elsewhere, outside the folder"),
    "E6 missing shard": (without_shard, r"b.safetensors is missing; copy the model folder again"),
    "E7 integers": (
        lambda f: edit_weights(f, **INTEGERS),
        r"holds torch.int8; it needs .*not quantized",
    ),
}
"""By row and fault: a function that damages a model folder, and what the error must hold."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_rejected(
    fault: str, saved: Path, tmp_path: Path, call: Callable[..., CommandResult]
) -> None:
    """The line names the file, the setting or the weights; the sentinel of a pickle is not created."""
    folder = shutil.copytree(saved, tmp_path / "model")
    damage, message = FAULTS[fault]
    damage(folder)
    result = call("chat", folder, "--prompt", "hi", "--dtype", "float32")
    assert result.returncode == 3, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert result.stdout == ""
    assert not (folder / "sentinel").exists()


def test_the_pickles_are_real(tmp_path: Path) -> None:
    """Python's own reader creates the sentinel, so the test above could fail."""
    pickle.loads(pickle.dumps(_Sentinel(tmp_path / "sentinel")))
    assert (tmp_path / "sentinel").exists()


def test_a_template_in_a_folder_is_not_rendered(
    saved: Path, tmp_path: Path, call: Callable[..., CommandResult]
) -> None:
    """A model folder's template is one of caldera's; a program in its files does nothing (fault E4)."""
    folder = shutil.copytree(saved, tmp_path / "model")
    payload = "{{ cycler.__init__.__globals__.os.system('touch sentinel') }}"
    (folder / "chat_template.jinja").write_text(payload)
    edit_json(folder / "tokenizer_config.json", chat_template=payload)
    words = ("chat", folder, "--prompt", "hi", "--dtype", "float32", "--max-new-tokens", "2")
    result = call(*words)
    assert result.returncode == 0, result.stderr
    edit_json(folder / "caldera.json", template=payload)
    rejected = call(*words)
    assert rejected.returncode != 0
    assert "no template is called" in rejected.stderr
    assert not Path("sentinel").exists()


def test_an_adapter_of_another_base_is_rejected(
    saved: Path, assistant: LlavaBundle, tmp_path: Path, call: Callable[..., CommandResult]
) -> None:
    """The line has both fingerprints, and no folder is written (fault E7)."""
    lora = LoraConfig(rank=2)
    with torch.no_grad():
        assistant.model.embedding_weight[5] += 1
    base = digest_base(assistant.model, set())
    add_lora(
        assistant.model.language,
        target_layers(assistant.model.language, lora.targets),
        lora,
        seed=1,
    )
    for name, weight in assistant.model.named_parameters():
        weight.requires_grad_(".down." in name or ".up." in name)
    save_adapter(tmp_path / "adapter", assistant, lora, base)
    result = call(
        "train", "merge", tmp_path / "adapter", "--model", saved, "--out", tmp_path / "out"
    )
    assert result.returncode == 3
    assert re.search(rf"with sha256 {base}, this one has [0-9a-f]{{64}}", result.stderr)
    assert not (tmp_path / "out").exists()
