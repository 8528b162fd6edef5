"""Conversion of a GGUF language model to a folder in transformers' format. Needs the extra caldera[gguf]."""

import struct
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.errors import ModelFormatError
from caldera.extras import require_extra
from caldera.files.atomic import atomic_folder
from caldera.formats.config import error_line


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's weights, dequantized to bf16, and its tokenizer as a folder, completely or not at all.

    Args:
        file: A file of an architecture that transformers reads from GGUF, such as LLaMA's.
        folder: The folder to write.

    Raises:
        UsageError: A package is missing.
        ModelFormatError: The file cannot be read, or its tensors do not have the size of their types.
        OutputError: The folder could not be written.
    """
    require_extra("gguf", file.name)
    _check_tensor_sizes(file)
    try:
        source = {"gguf_file": file.name, "local_files_only": True}
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    except (OSError, ValueError, LookupError, RuntimeError, struct.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{file} cannot be read: {reason}") from None
    config = loaded.config
    if hasattr(config, "quantization_config"):  # the weights are dequantized now
        del config.quantization_config
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    nn.Module.to(model, torch.bfloat16)
    with atomic_folder(folder) as fresh:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)


def _check_tensor_sizes(file: Path) -> None:
    """Check that each tensor ends where the next begins, as another type, of more or fewer bits, would not.

    Raises:
        ModelFormatError: One does not, or the file cannot be read.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise ModelFormatError(f"{file} cannot be read: {error_line(error)}") from None
    tensors = sorted(reader.tensors, key=lambda tensor: tensor.data_offset)
    starts = [tensor.data_offset for tensor in tensors[1:]]
    for tensor, next_start in zip(tensors, [*starts, file.stat().st_size], strict=True):
        unused = next_start - tensor.data_offset - tensor.n_bytes
        if not 0 <= unused < reader.alignment:
            raise ModelFormatError(
                f"{file} claims that {tensor.name} has type {tensor.tensor_type.name}, {tensor.n_bytes} bytes, but has "
                f"{tensor.n_bytes + unused} for it; get the file again from its source"
            )
