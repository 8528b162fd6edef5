"""Writer of GGUF files, one tensor at a time. Needs the extra caldera[gguf].

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

from caldera.errors import ModelFormatError
from caldera.progress import Advance

if TYPE_CHECKING:
    from gguf import GGUFWriter

GgufDtype = Literal["f32", "f16", "q8_0"]

FILE_TYPES: dict[GgufDtype, int] = {"f32": 0, "f16": 1, "q8_0": 7}
"""Type of most of a file's weights, and llama.cpp's number for it (`general.file_type`)."""

_BLOCK, _BLOCK_BYTES = 32, 34
"""Q8_0 stores 32 neighbors of a row as one fp16 scale and 32 signed bytes."""

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """Shape in PyTorch's order; GGUF reverses the axes."""

    read: Callable[[], Tensor]
    """Function that returns it in fp32; called once, when it is written."""

    exact: bool = False
    """Whether it is written in F32 for every file type, as vectors always are."""


def write_gguf(
    file: Path,
    architecture: str,
    settings: Mapping[str, Value],
    tensors: Sequence[TensorSpec],
    dtype: GgufDtype,
    tick: Advance,
) -> None:
    """Write a GGUF file with at most one tensor in memory.

    Args:
        file: The file, which is written in place: give a path in a fresh folder.
        architecture: Value of `general.architecture`.
        settings: Every other key, with its value.
        tensors: The tensors.
        dtype: Type of the matrices; those whose rows Q8_0 cannot divide into blocks become F16.
        tick: Called after each tensor.

    Raises:
        ModelFormatError: A weight is not finite, or too large for its type.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(file, architecture)
    for key, value in settings.items():
        _add_key(writer, key, value)
    writer.add_file_type(FILE_TYPES[dtype])
    if dtype == "q8_0":
        writer.add_quantization_version(2)
    try:
        for tensor in tensors:
            _add_tensor_info(writer, tensor, dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(_encode(tensor, dtype))
            tick()
    finally:
        writer.close()


def _stored_dtype(tensor: TensorSpec, dtype: GgufDtype) -> GgufDtype:
    """Return the type of one tensor in a file of type `dtype`."""
    if tensor.exact or len(tensor.shape) == 1:
        return "f32"
    return "f16" if dtype == "q8_0" and tensor.shape[-1] % _BLOCK else dtype


def _add_key(writer: "GGUFWriter", key: str, value: Value) -> None:
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


def _add_tensor_info(writer: "GGUFWriter", tensor: TensorSpec, dtype: GgufDtype) -> None:
    """Add name, shape and type of a tensor to the file's header."""
    from gguf import GGMLQuantizationType

    stored = _stored_dtype(tensor, dtype)
    count = int(np.prod(tensor.shape))
    sizes = {"f32": count * 4, "f16": count * 2, "q8_0": count // _BLOCK * _BLOCK_BYTES}
    number = GGMLQuantizationType[stored.upper()]
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), sizes[stored], number)


def _encode(tensor: TensorSpec, dtype: GgufDtype) -> np.ndarray:
    """Read a tensor and return it in its stored type, or raise ModelFormatError if a value does not fit."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = np.ascontiguousarray(tensor.read().numpy(), dtype=np.float32)
    assert values.shape == tensor.shape, f"{tensor.name}: {values.shape}, announced {tensor.shape}"
    stored = _stored_dtype(tensor, dtype)
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= float(np.finfo(np.float16 if stored == "f16" else np.float32).max):
        raise ModelFormatError(
            f"the weight that becomes {tensor.name} holds {largest:.3g}, which {stored} cannot hold; "
            + ("try --type f32" if np.isfinite(largest) else "the model is broken")
        )
    if stored == "q8_0":
        return quantize(values, GGMLQuantizationType.Q8_0)
    return values.astype(np.float16 if stored == "f16" else np.float32)
