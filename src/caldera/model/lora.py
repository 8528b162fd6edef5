"""LoRA layers in a language model, and their merging into its weights.

A layer W x becomes W x + scale * up(down(dropout(x))) with scale = alpha / rank (arXiv 2106.09685, section 4.1); `up`
starts at zero, so fresh LoRA layers do not change the output.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError, UnknownNameError, UsageError
from caldera.model.lora_config import LoraConfig

_PROBE_TOKENS = 17
_MAX_LOGIT_ERROR = 1e-3
"""Largest difference after merging, as a fraction of the largest logit: fp32's rounding is a thousand times smaller,
bf16's ten times larger."""


class LoraLinear(nn.Linear):
    """Linear layer with a frozen weight and two trainable low-rank matrices."""

    def __init__(self, plain: nn.Linear, lora: LoraConfig) -> None:
        """Share the weights of `plain`; the low-rank matrices are freshly initialized in their dtype."""
        super().__init__(
            plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta"
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.down = nn.Linear(plain.in_features, lora.rank, bias=False).to(plain.weight)
        self.up = nn.Linear(lora.rank, plain.out_features, bias=False).to(plain.weight)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(lora.dropout)
        self.scale = lora.alpha / lora.rank
        self.train(plain.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (..., out features) from (..., in features)."""
        update = self.up(self.down(self.dropout(inputs)))  # (..., out features)
        return super().forward(inputs) + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer with the same output; the sum is computed in fp32."""
        plain = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        update = self.scale * (self.up.weight.float() @ self.down.weight.float())
        merged = (self.weight.float() + update).to(self.weight.dtype)  # (out, in)
        plain.weight, plain.bias = nn.Parameter(merged, requires_grad=False), self.bias
        return plain.train(self.training)


def linear_layers(language: PreTrainedModel) -> list[str]:
    """Return the full names of a language model's linear layers, without its head.

    LLaVA's scripts select layers by the last part of their name, which would match a vision tower's `q_proj` if it were
    not loaded later; a full name in the language model matches nothing else.
    """
    prefix = language.base_model_prefix + "."
    head = language.get_output_embeddings()
    return [
        name
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(prefix) and module is not head
    ]


def target_layers(language: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers whose last part is one of `targets`, all if there are none.

    Raises:
        UnknownNameError: No layer has this last part.
        UsageError: The model has no linear layer, such as GPT-2, whose layers are convolutions.
    """
    layers = linear_layers(language)
    if not layers:
        raise UsageError(
            f"language models of type {language.config.model_type!r} have no linear layers for LoRA; train all "
            "weights (lora=none)"
        )
    names = {layer.rpartition(".")[2] for layer in layers}
    for target in targets:
        if target not in names:
            raise UnknownNameError("linear layer of the language model", target, names)
    return [layer for layer in layers if not targets or layer.rpartition(".")[2] in targets]


def add_lora(
    language: PreTrainedModel, layers: Iterable[str], lora: LoraConfig, *, seed: int
) -> None:
    """Replace the linear layers with the full names `layers` by LoRA layers, initialized from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            plain = language.get_submodule(layer)
            assert isinstance(plain, nn.Linear)
            language.set_submodule(layer, LoraLinear(plain, lora))


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """Return the LoRA layers of a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLinear)}


def lora_parameters(module: nn.Module) -> list[Tensor]:
    """Return the low-rank matrices of all LoRA layers of a module."""
    layers = lora_layers(module).values()
    return [part.weight for layer in layers for part in (layer.down, layer.up)]


def merge_lora_layers(language: PreTrainedModel) -> None:
    """Merge all LoRA layers into their weights, and check that the logits are unchanged.

    Raises:
        ModelFormatError: The logits differ: the weights are too coarse for the update, or not finite.
    """
    language.eval()
    before = _probe(language)
    for name, layer in lora_layers(language).items():
        language.set_submodule(name, layer.merged())
    after = _probe(language)
    gap, largest = float((after - before).abs().max()), float(before.abs().max())
    if not gap <= _MAX_LOGIT_ERROR * largest:
        raise ModelFormatError(
            f"merging LoRA changes the logits by up to {gap:.3g} (the largest is {largest:.3g}), so the model was not "
            "written; merge into fp32 weights"
        )


@torch.no_grad()
def _probe(language: PreTrainedModel) -> Tensor:
    """Return the logits of a few tokens from the whole vocabulary, (tokens, vocabulary)."""
    last = language.get_input_embeddings().weight.shape[0] - 1  # type: ignore[index] # a Parameter
    ids = torch.linspace(0, last, _PROBE_TOKENS, device=language.device).long()  # (tokens,)
    return language(input_ids=ids[None], use_cache=False).logits[0].float()
