"""A language model in, one without every second of its layers out: the smaller model of an ablation."""

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from caldera.errors import UsageError
from caldera.storage import atomic_folder


def drop_every_second_layer(language: Path, out: Path) -> Path:
    """Write a language model without every second of its layers, once; nothing is trained again.

    Raises:
        UsageError: It has no list of layers as LLaMA's family has.
    """
    if out.exists():
        return out
    whole = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    layers = getattr(getattr(whole, "model", None), "layers", None)
    if layers is None or len(layers) < 2:
        raise UsageError(f"the layers of {type(whole).__name__} cannot be halved")
    config = whole.config
    config.num_hidden_layers = len(layers) // 2
    half = type(whole)(config)
    kept = {
        re.sub(r"(?<=\.layers\.)\d+", lambda found: str(int(found[0]) // 2), name): weight
        for name, weight in whole.state_dict().items()
        if (found := re.search(r"\.layers\.(\d+)\.", name)) is None or int(found[1]) % 2 == 0
    }
    half.load_state_dict(kept)
    with atomic_folder(out) as folder:
        half.save_pretrained(folder)
        AutoTokenizer.from_pretrained(language).save_pretrained(folder)
    return out
