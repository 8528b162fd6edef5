"""Under autocast, norms put out fp32, and each linear layer behind one casts it anew; here it is cast once.

The products get the same numbers. The norm itself still computes in fp32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def cast_norms_once(language: PreTrainedModel) -> None:
    """Have the norms of a language model's width put out the precision of autocast where that is on.

    Norms of other widths, such as those of single heads, feed no linear layer and stay as they are.
    """
    width = language.config.get_text_config().hidden_size
    for module in language.modules():
        if not type(module).__name__.endswith("Norm") or _cast in module._forward_hooks.values():
            continue
        if all(weight.shape == (width,) for weight in module.parameters()):
            module.register_forward_hook(_cast)


def _cast(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401 - torch's
    """Cast what a norm puts out."""
    del module, inputs
    device = output.device.type
    if torch.is_autocast_enabled(device):
        return output.to(torch.get_autocast_dtype(device))
    return output
