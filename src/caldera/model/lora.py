"""A language model in, the same one with trainable low-rank factors in its linear layers out, and folded back (LoRA).

A layer W x becomes W x + scale * up(down(dropout(x))) with scale = alpha / rank (arXiv 2106.09685, section 4.1); `up`
starts at zero, so a fresh model says what it said before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from caldera.errors import ModelFormatError, UnknownNameError, UsageError

_PROBE_TOKENS = 17
_MAX_LOGIT_ERROR = 1e-3
"""Largest difference, as a share of the largest logit, between a model with factors and the one they are folded into:
fp32's rounding is a thousand times smaller, bf16's ten times larger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """How a language model is trained by low-rank factors; the defaults are LLaVA-1.5's (its finetune_lora.sh)."""

    rank: int = 128
    """Width of the factors."""

    alpha: float = 256.0
    """The factors' product is scaled by alpha / rank."""

    dropout: float = 0.05
    """Share of a factor's inputs that is dropped in training."""

    targets: tuple[str, ...] = ()
    """Last names of the linear layers that get factors, such as q_proj; all but the head if empty."""

    def __post_init__(self) -> None:
        """Check every setting, and name all that are wrong.

        Raises:
            UsageError: A setting is out of its range.
        """
        faults = []
        if self.rank < 1:
            faults.append(f"rank is {self.rank}; it must be at least 1")
        if not 0 < self.alpha < inf:
            faults.append(f"alpha is {self.alpha}; it must be over 0 and finite")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout is {self.dropout}; it must lie in [0, 1)")
        if faults:
            raise UsageError(f"lora: {'; '.join(faults)}")


class LoraLinear(nn.Linear):
    """A linear layer whose weight stands still while two factors beside it learn."""

    def __init__(self, plain: nn.Linear, lora: LoraConfig) -> None:
        """Take over the weights of `plain`; the factors are drawn anew, in their precision."""
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
        steered = self.up(self.down(self.dropout(inputs)))  # (..., out features)
        return super().forward(inputs) + self.scale * steered

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer that says the same without factors; the sum is made in fp32."""
        plain = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        steering = self.scale * (self.up.weight.float() @ self.down.weight.float())
        merged = (self.weight.float() + steering).to(self.weight.dtype)  # (out, in)
        plain.weight, plain.bias = nn.Parameter(merged, requires_grad=False), self.bias
        return plain.train(self.training)


def linear_layers(language: PreTrainedModel) -> list[str]:
    """Return the full paths of a language model's linear layers; its head lies outside its base and is none of them.

    LLaVA's scripts pick layers by their last name, which a vision tower's `q_proj` escapes only because it is loaded
    later; a full path inside the language model can hit nothing else.
    """
    inside = language.base_model_prefix + "."
    head = language.get_output_embeddings()
    return [
        name
        for name, module in language.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(inside) and module is not head
    ]


def target_layers(language: PreTrainedModel, targets: tuple[str, ...]) -> list[str]:
    """Return the full paths of the layers called by one of `targets`, all if there are none.

    Raises:
        UnknownNameError: No layer has such a last name.
        UsageError: The model has no linear layer at all, as GPT-2, whose layers are convolutions.
    """
    layers = linear_layers(language)
    if not layers:
        raise UsageError(
            f"language models of type {language.config.model_type!r} have no linear layers that factors could stand "
            "beside; train it whole (lora=none)"
        )
    known = {layer.rpartition(".")[2] for layer in layers}
    for target in targets:
        if target not in known:
            raise UnknownNameError("linear layer of the language model", target, known)
    return [layer for layer in layers if not targets or layer.rpartition(".")[2] in targets]


def add_lora(
    language: PreTrainedModel, layers: Iterable[str], lora: LoraConfig, *, seed: int
) -> None:
    """Put fresh factors, drawn from `seed`, beside the linear layers at `layers`, which are full paths."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            plain = language.get_submodule(layer)
            assert isinstance(plain, nn.Linear)
            language.set_submodule(layer, LoraLinear(plain, lora))


def lora_layers(module: nn.Module) -> dict[str, LoraLinear]:
    """Return the layers below a module that have factors, by path."""
    return {name: each for name, each in module.named_modules() if isinstance(each, LoraLinear)}


def lora_parameters(module: nn.Module) -> list[Tensor]:
    """Return the weights of all factors below a module."""
    return [
        factor.weight for layer in lora_layers(module).values() for factor in (layer.down, layer.up)
    ]


def merge_lora_layers(language: PreTrainedModel) -> None:
    """Fold all factors into the weights they stand beside, and see that the model still says the same.

    Raises:
        ModelFolderError: Its logits have changed: the weights are too coarse for the factors, or not finite.
    """
    language.eval()
    before = _probe(language)
    for name, layer in lora_layers(language).items():
        language.set_submodule(name, layer.merged())
    after = _probe(language)
    gap, largest = float((after - before).abs().max()), float(before.abs().max())
    if not gap <= _MAX_LOGIT_ERROR * largest:
        raise ModelFormatError(
            f"the language model with its factors folded in gives logits that differ by up to {gap:.3g} (the largest "
            f"is {largest:.3g}), so it was not written; fold into fp32 weights"
        )


@torch.no_grad()
def _probe(language: PreTrainedModel) -> Tensor:
    """Return logits for a few tokens from all over the vocabulary, (tokens, vocabulary)."""
    last = language.get_input_embeddings().weight.shape[0] - 1  # type: ignore[index] # a Parameter
    ids = torch.linspace(0, last, _PROBE_TOKENS, device=language.device).long()  # (tokens,)
    return language(input_ids=ids[None], use_cache=False).logits[0].float()
