"""Any folder or file of weights in, its tensors by their own names out: safetensors, or torch's files, read as data."""

from dataclasses import dataclass
from pathlib import Path

from caldera.errors import ModelFormatError
from caldera.formats.safetensors_files import (
    INDEX,
    TORCH_SUFFIXES,
    WEIGHTS,
    LazyWeight,
    merge_listings,
    read_safetensors,
    weight_files,
)
from caldera.formats.torch_pickles import read_pickle

TORCH_WEIGHTS = "pytorch_model.bin"
TORCH_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Weights, and the files that they are in."""

    weights: dict[str, LazyWeight]
    files: tuple[Path, ...]


def has_weights(folder: Path) -> bool:
    """Tell whether a folder holds a whole model's weights."""
    names = (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX)
    return any((folder / name).exists() for name in names)


def read_folder(folder: Path) -> Source:
    """List the weights of a folder; where it holds them in both formats, as safetensors, as transformers does.

    Raises:
        ModelFolderError: There are none, or a file is missing, cut, broken, outside the folder, or could run code.
    """
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        names = WEIGHTS, INDEX
    elif (folder / TORCH_WEIGHTS).exists() or (folder / TORCH_INDEX).exists():
        names = TORCH_WEIGHTS, TORCH_INDEX
    else:
        raise ModelFormatError(
            f"{folder} has no weights: neither {WEIGHTS} nor {TORCH_WEIGHTS}, whole or with an index; check the path"
        )
    files = weight_files(folder, *names)
    found = merge_listings({file: read_file(file).weights for file in files}, folder / names[1])
    return Source(found, tuple(files))


def read_file(file: Path) -> Source:
    """List the weights of one file; its suffix says the format, and its content must be of it.

    Raises:
        ModelFolderError: It is missing, cut, broken, of another format, or could run code.
    """
    if file.suffix == ".safetensors":
        return Source(read_safetensors(file), (file,))
    if file.suffix in TORCH_SUFFIXES:
        return Source(read_pickle(file), (file,))
    raise ModelFormatError(
        f"{file} is no file of weights; known suffixes: .safetensors, {', '.join(TORCH_SUFFIXES)}"
    )


def read_one_of(folder: Path, *names: str) -> Source:
    """List the weights of the only file of these names that a folder has.

    Raises:
        ModelFolderError: It has none of them, or several.
    """
    there = [folder / name for name in names if (folder / name).exists()]
    if len(there) != 1:
        found = " and ".join(file.name for file in there) or "none of them"
        raise ModelFormatError(f"{folder} should have one of {', '.join(names)}; it has {found}")
    return read_file(there[0])
