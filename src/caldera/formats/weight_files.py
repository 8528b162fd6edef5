"""Weight files of any folder or format, listed by name: safetensors, or torch's files without running their code."""

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
    """Weights by name, and the files that hold them."""

    weights: dict[str, LazyWeight]
    files: tuple[Path, ...]


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds the weights of a complete model."""
    names = (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX)
    return any((folder / name).exists() for name in names)


def read_folder(folder: Path) -> Source:
    """List the weights of a folder; if it has both formats, those in safetensors, as transformers does.

    Raises:
        ModelFormatError: There are none, or a file is missing, broken, outside the folder, or could run code.
    """
    if (folder / WEIGHTS).exists() or (folder / INDEX).exists():
        names = WEIGHTS, INDEX
    elif (folder / TORCH_WEIGHTS).exists() or (folder / TORCH_INDEX).exists():
        names = TORCH_WEIGHTS, TORCH_INDEX
    else:
        raise ModelFormatError(
            f"{folder} has no weights: neither {WEIGHTS} nor {TORCH_WEIGHTS}, in one file or with an index; check the "
            "path"
        )
    files = weight_files(folder, *names)
    weights = merge_listings({file: read_file(file).weights for file in files}, folder / names[1])
    return Source(weights, tuple(files))


def read_file(file: Path) -> Source:
    """List the weights of one file; its suffix gives the format, and its content must match.

    Raises:
        ModelFormatError: It is missing, broken, of another format, or could run code.
    """
    if file.suffix == ".safetensors":
        return Source(read_safetensors(file), (file,))
    if file.suffix in TORCH_SUFFIXES:
        return Source(read_pickle(file), (file,))
    raise ModelFormatError(
        f"{file} is not a file of weights; known suffixes: .safetensors, {', '.join(TORCH_SUFFIXES)}"
    )


def read_one_of(folder: Path, *names: str) -> Source:
    """List the weights of the only file of these names in a folder.

    Raises:
        ModelFormatError: It has none of them, or several.
    """
    files = [folder / name for name in names if (folder / name).exists()]
    if len(files) != 1:
        present = " and ".join(file.name for file in files) or "none of them"
        raise ModelFormatError(f"{folder} should have one of {', '.join(names)}; it has {present}")
    return read_file(files[0])
