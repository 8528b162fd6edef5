"""A GGUF file of a language model in, a folder in transformers' format out. Needs the extra caldera[gguf]."""

import struct
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.errors import ModelFormatError, UsageError
from caldera.files.atomic import atomic_folder

_NEEDED = ("gguf", "accelerate")
"""Packages that transformers reads GGUF files with."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's weights, freed of their quantization, as a model folder, whole or not at all.

    Args:
        file: Of an architecture whose GGUF files transformers reads, such as LLaMA's.
        folder: Where the model folder will stand; weights in bf16, with tokenizer.

    Raises:
        UsageError: A package is missing.
        ModelFolderError: The file cannot be read.
        OutputError: The folder could not be written.
    """
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UsageError(f"{file.name} needs {' and '.join(missing)}; pip install 'caldera[gguf]'")
    try:
        source = {"gguf_file": file.name, "local_files_only": True}
        read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    except (OSError, ValueError, LookupError, RuntimeError, struct.error) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelFormatError(f"{file} cannot be read: {reason}") from None
    config = read.config
    if hasattr(config, "quantization_config"):  # the weights are plain now, whatever the file held
        del config.quantization_config
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    nn.Module.to(plain, torch.bfloat16)
    with atomic_folder(folder) as fresh:
        plain.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
