"""Settings and tensors in, a GGUF file out, written tensor by tensor. Needs the extra caldera[gguf].

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from caldera.errors import ModelFormatError, UsageError
from caldera.progress import Advance

if TYPE_CHECKING:
    from gguf import GGUFWriter

GgufDtype = Literal["f32", "f16", "q8_0"]

FILE_TYPES: dict[GgufDtype, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""How the bulk of a file's weights is held, and llama.cpp's number for it (`general.file_type`)."""

_BLOCK, _BLOCK_BYTES = 32, 34
"""Q8_0 holds 32 neighbors of a row as one fp16 scale and 32 signed bytes."""

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """As in PyTorch; GGUF counts axes from the other end."""

    read: Callable[[], Tensor]
    """Called once, when it is written; gives it in fp32."""

    exact: bool = False
    """Whether it stays in F32 whatever the file's type, as vectors always do."""


def needs_gguf(what: str) -> None:
    """Refuse where the package is missing.

    Raises:
        UsageError: It is.
    """
    if find_spec("gguf") is None:
        raise UsageError(f"{what} needs the package gguf: pip install 'caldera[gguf]'")


def write_gguf(
    file: Path,
    architecture: str,
    settings: Mapping[str, Value],
    pieces: Sequence[TensorSpec],
    kind: GgufDtype,
    tick: Advance,
) -> None:
    """Write a GGUF file; one tensor is held in memory at a time.

    Args:
        file: Written in place; the caller gives one in a fresh folder.
        architecture: `general.architecture`.
        settings: Every other key, with its value.
        pieces: The tensors.
        kind: Type of matrices; those whose rows Q8_0 cannot cut into blocks become F16.
        tick: Called after each tensor.

    Raises:
        ModelFolderError: A weight is not finite, or too large for its type.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(file, architecture)
    for key, value in settings.items():
        _add(writer, key, value)
    writer.add_file_type(FILE_TYPES[kind])
    if kind == "q8_0":
        writer.add_quantization_version(2)
    try:
        for piece in pieces:
            _announce(writer, piece, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for piece in pieces:
            writer.write_tensor_data(_encoded(piece, kind))
            tick()
    finally:
        writer.close()


def type_of(piece: TensorSpec, kind: GgufDtype) -> GgufDtype:
    """Return how one tensor of a file of type `kind` is held."""
    if piece.exact or len(piece.shape) == 1:
        return "f32"
    return "f16" if kind == "q8_0" and piece.shape[-1] % _BLOCK else kind


def _add(writer: "GGUFWriter", key: str, value: Value) -> None:
    """Add one key, by the type of its value."""
    match value:
        case bool():
            writer.add_bool(key, value)
        case str():
            writer.add_string(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, value)


def _announce(writer: "GGUFWriter", piece: TensorSpec, kind: GgufDtype) -> None:
    """Add what stands in the file's head about a tensor."""
    from gguf import GGMLQuantizationType

    held = type_of(piece, kind)
    count = int(np.prod(piece.shape))
    sizes = {"f32": count * 4, "f16": count * 2, "q8_0": count // _BLOCK * _BLOCK_BYTES}
    number = GGMLQuantizationType[held.upper()]
    writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), sizes[held], number)


def _encoded(piece: TensorSpec, kind: GgufDtype) -> np.ndarray:
    """Read a tensor and return it as it is held.

    Raises:
        ModelFolderError: A value is not finite there.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = np.ascontiguousarray(piece.read().numpy(), dtype=np.float32)
    assert values.shape == piece.shape, f"{piece.name}: {values.shape}, announced {piece.shape}"
    held = type_of(piece, kind)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= float(np.finfo(np.float16 if held == "f16" else np.float32).max):
        raise ModelFormatError(
            f"the weight that becomes {piece.name} holds {largest:.3g}, which {held} cannot hold; "
            + ("try --type f32" if np.isfinite(largest) else "the model is broken")
        )
    if held == "q8_0":
        return quantize(values, GGMLQuantizationType.Q8_0)
    return values.astype(np.float16 if held == "f16" else np.float32)
