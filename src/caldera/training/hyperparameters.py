"""Hyper-parameters of a training stage, with LLaVA's values for stage 1 and stage 2."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from caldera.errors import UnknownNameError, UsageError, range_errors
from caldera.images.anyres import ASPECTS, RELEASED_GRIDS, ImageAspect, grid_pinpoints
from caldera.model.lora_config import LoraConfig
from caldera.templates.registry import find_template

Part = Literal["vision", "projector", "language"]

PARTS: tuple[Part, ...] = get_args(Part)

_RANGES = {
    **dict.fromkeys(
        ("learning_rate", "projector_learning_rate", "vision_learning_rate", "max_grad_norm"),
        "(0, inf)",
    ),
    **dict.fromkeys(
        ("batch_size", "batch_tokens", "loss_batch_size", "micro_batch_size", "micro_batch_tokens"),
        "[1, inf]",
    ),
    **dict.fromkeys(
        ("epochs", "max_steps", "max_length", "eval_every", "save_every", "anyres_max"),
        "[1, inf]",
    ),
    "save_every_minutes": "(0, inf]",
    "warmup_ratio": "[0, 1)",
    "validation_size": "[0, inf]",
    "weight_decay": "[0, inf)",
}
"""Intervals of the settings that are numbers; None is not checked."""

EXECUTION_SETTINGS = frozenset(
    {
        "micro_batch_size",
        "micro_batch_tokens",
        "gradient_checkpointing",
        "max_length",
        "eval_every",
        "save_every",
        "save_every_minutes",
        "cache_features",
    }
)
"""Settings of a stage that do not change its steps, so an interrupted run can be resumed with others. The records that
`max_length` allows do, and are compared themselves."""


_LATER_SETTINGS = frozenset({"loss_batch_size", "anyres_max"})


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a stage that change its steps.

    Some settings count if they are set: without them a step is what it was in versions that did not have them.
    """
    return {
        name: value
        for name, value in settings.items()
        if name not in EXECUTION_SETTINGS and not (name in _LATER_SETTINGS and value is None)
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Settings of one training stage."""

    name: str
    """Name of the stage and of its folder."""

    trainable: tuple[Part, ...]
    """Parts whose weights are trained; every other part is frozen."""

    template: str
    """Chat template of the conversations."""

    learning_rate: float
    """Peak learning rate, reached at the end of the warm-up."""

    projector_learning_rate: float | None = None
    """Peak learning rate of the projector; None is `learning_rate`."""

    vision_learning_rate: float | None = None
    """Peak learning rate of the vision tower; None is `learning_rate`."""

    lora: LoraConfig | None = None
    """LoRA of the language model; None trains all its weights."""

    batch_size: int
    """Conversations per optimizer step."""

    batch_tokens: int | None = None
    """Tokens per optimizer step, counted before packing, instead of `batch_size`."""

    loss_batch_size: int | None = None
    """Conversations whose supervised tokens are averaged together; the loss of a step is the mean of these means, as
    LLaVA's is over the batches of all devices (`per_device_train_batch_size`). None is the mean over all tokens of the
    step."""

    micro_batch_size: int | None = None
    """Conversations per forward pass, at most; None is limited by `micro_batch_tokens` alone. Has no effect on the
    result of a step."""

    micro_batch_tokens: int = 16_384
    """Tokens per forward pass, at most; a longer conversation is alone. Has no effect on the result of a step."""

    share_prefixes: bool = True
    """Whether conversations about the same images are in the same step, where their common prefix, images included, is
    computed once. Has no effect on their loss."""

    gradient_checkpointing: bool = False
    """Whether layers recompute their activations in the backward pass instead of storing them: slower, less memory."""

    epochs: int = 1
    """Passes over the data."""

    max_steps: int | None = None
    """Optimizer steps after which the stage ends, whatever the number of epochs."""

    warmup_ratio: float = 0.03
    """Fraction of the steps in which the learning rate rises from 0 to its peak; then it falls along half a cosine."""

    weight_decay: float = 0.0
    """AdamW's weight decay, on weight matrices only."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas."""

    max_grad_norm: float | None = 1.0
    """Gradients are clipped to this norm; None does not clip."""

    aspect: ImageAspect | None = None
    """Preparation of images that are not square, from this stage on; None keeps the model's. LLaVA-1.5 crops them in
    stage 1 and pads them in stage 2."""

    grid_pinpoints: tuple[str, ...] = RELEASED_GRIDS
    """Grids, columns x rows of tiles, that the aspect `anyres` chooses from, where this stage sets it."""

    anyres_max: int | None = None
    """Tiles to whose number of tokens a larger image of `anyres` is scaled down, where this stage sets it: 9 in
    LLaVA-OneVision's `anyres_max_9`, where several images of a conversation are one view each. None is LLaVA-NeXT's."""

    max_length: int = 2048
    """Tokens of a conversation, at most, those of images included; a language model of fewer positions allows fewer."""

    validation_size: int = 128
    """Conversations of the validation split, at most a tenth of all; their loss is measured at the start, every
    `eval_every` steps, and at the end."""

    eval_every: int = 200
    """Steps between two measurements of the validation loss."""

    save_every: int = 500
    """Steps between two checkpoints, at most."""

    save_every_minutes: float | None = 10.0
    """Minutes between two checkpoints, at most; None counts steps alone."""

    cache_features: bool = True
    """Whether the features of a frozen vision tower are computed once and cached on disk."""

    calibrate_projector: bool = False
    """Whether the projector is scaled, before the first step, so that image tokens have the standard deviation of word
    embeddings."""

    seed: int = 42
    """Seed of the order of conversations, the validation split, and dropout."""

    def __post_init__(self) -> None:
        """Check every setting, and name all that are invalid."""
        find_template(self.template)
        grid_pinpoints(self.grid_pinpoints, side=1)
        if self.aspect is not None and self.aspect not in ASPECTS:
            raise UnknownNameError("aspect", self.aspect, ASPECTS)
        errors = [*self._combination_errors(), *range_errors(self, _RANGES)]
        if errors:
            raise UsageError(f"stage {self.name!r}: {'; '.join(errors)}")

    def _combination_errors(self) -> Iterator[str]:
        """Yield what is wrong with the trainable parts and with settings that depend on each other."""
        if not self.trainable or set(self.trainable) - set(PARTS):
            yield f"trainable is {self.trainable}; name one or more of {PARTS}"
        if self.lora and "language" not in self.trainable:
            yield f"lora is set, but trainable is {self.trainable}; add language to it, or set lora=none"
        if self.aspect != "anyres" and self.grid_pinpoints != RELEASED_GRIDS:
            grids = ", ".join(self.grid_pinpoints)
            yield f"grid_pinpoints are {grids}, but aspect is {self.aspect}; set aspect=anyres before them"
        if self.aspect != "anyres" and self.anyres_max is not None:
            yield f"anyres_max is {self.anyres_max}, but aspect is {self.aspect}; set aspect=anyres before it"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas are {self.betas}; both must lie in [0, 1)"

    def learning_rate_of(self, part: str) -> float:
        """Return the peak learning rate of a part."""
        own = {"projector": self.projector_learning_rate, "vision": self.vision_learning_rate}
        rate = own.get(part)
        return self.learning_rate if rate is None else rate


PRETRAIN = Stage(
    name="pretrain",
    trainable=("projector",),
    template="plain",
    learning_rate=1e-3,
    batch_size=256,
)
"""LLaVA-1.5's stage 1, feature alignment (arXiv 2310.03744, table 9)."""

FINETUNE = replace(
    PRETRAIN,
    name="finetune",
    trainable=("projector", "language"),
    template="vicuna_v1",
    learning_rate=2e-5,
    batch_size=128,
)
"""LLaVA-1.5's stage 2, visual instruction tuning (arXiv 2310.03744, table 9)."""

FINETUNE_LORA = replace(
    FINETUNE,
    learning_rate=2e-4,
    projector_learning_rate=2e-5,
    lora=LoraConfig(),
)
"""LLaVA-1.5's stage 2 with LoRA (its scripts/v1_5/finetune_lora.sh)."""
