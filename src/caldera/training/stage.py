"""What a stage is told: which parts learn, how fast, on how much. LLaVA's two stages are two values of it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import inf
from typing import Literal, get_args

from caldera.errors import UnknownNameError, UsageError
from caldera.images.anyres import RELEASED_GRIDS, grid_pinpoints
from caldera.images.processor import ASPECTS, ImageAspect
from caldera.model.lora import LoraConfig
from caldera.templates.template import find_template

Part = Literal["vision", "projector", "language"]

PARTS: tuple[Part, ...] = get_args(Part)

_POSITIVE = (
    "learning_rate", "projector_learning_rate", "vision_learning_rate", "max_grad_norm",
)  # fmt: skip

_MIN_ONE = (
    "batch_size", "batch_tokens", "micro_batch_size", "micro_batch_tokens",
    "epochs", "max_steps", "max_length", "eval_every", "save_every",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One pass of training."""

    name: str
    """What the run and its folder are called."""

    trainable: tuple[Part, ...]
    """Parts whose weights move; every other part is frozen."""

    template: str
    """How conversations are written for it."""

    learning_rate: float
    """Peak rate, reached when warm-up ends."""

    projector_learning_rate: float | None = None
    """Peak rate of the projector, where it differs."""

    vision_learning_rate: float | None = None
    """Peak rate of the vision tower, where it trains at another."""

    lora: LoraConfig | None = None
    """Train the language model by low-rank factors; None trains its weights themselves."""

    batch_size: int
    """Conversations per optimizer step."""

    batch_tokens: int | None = None
    """Tokens per optimizer step instead, as many conversations as fit; counted before packing."""

    micro_batch_size: int | None = None
    """Conversations that go through the model together, at most; as many as `micro_batch_tokens` allows if None. The
    step is the same."""

    micro_batch_tokens: int = 16_384
    """Tokens that go through the model together, at most; a longer conversation goes alone. The step is the same."""

    share_prefixes: bool = True
    """Whether conversations about the same images come in the same step, where their common beginning, images
    included, goes through the model once. Their loss is the same."""

    gradient_checkpointing: bool = False
    """Whether a layer's inner results are computed again in backward instead of being kept: slower, less memory."""

    epochs: int = 1
    """Times that every conversation is seen."""

    max_steps: int | None = None
    """Optimizer steps after which the stage ends, however many epochs there are."""

    warmup_ratio: float = 0.03
    """Share of the steps spent rising to the peak rate; then it falls along half a cosine to zero."""

    weight_decay: float = 0.0
    """AdamW's, on weight matrices."""

    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    aspect: ImageAspect | None = None
    """How images that are not square are shown from this stage on; as the assistant has it if None. LLaVA-1.5 cuts
    them in stage 1 and pads them in stage 2."""

    grid_pinpoints: tuple[str, ...] = RELEASED_GRIDS
    """Columns x rows of tiles that the aspect `anyres` chooses from, where this stage sets it."""

    max_length: int = 2048
    """Longest conversation in tokens, those of images included; a language model of fewer positions allows fewer."""

    validation_size: int = 128
    """Conversations held out, at most a tenth of all, on which the loss is measured at the start, now and then, and at
    the end."""

    eval_every: int = 200
    """Steps between two such measurements."""

    save_every: int = 500
    """Steps between two checkpoints."""

    cache_features: bool = True
    """Whether a frozen tower's features are computed once and kept on disk."""

    calibrate_projector: bool = False
    """Whether the projector is scaled, before the first step, to put out tokens as spread as word embeddings."""

    seed: int = 42
    """Of the order of conversations, the choice of those held out, and dropout."""

    def __post_init__(self) -> None:
        """Check every setting, and name all that are wrong.

        Raises:
            UnknownNameError: There is no such template or aspect.
            UsageError: A setting is out of its range.
        """
        self._check_names()
        faults = [*self._part_errors(), *self._faults_of_numbers()]
        if faults:
            raise UsageError(f"stage {self.name!r}: {'; '.join(faults)}")

    def _part_errors(self) -> Iterator[str]:
        """Say what is wrong with what trains, and with settings that go together."""
        if not self.trainable or set(self.trainable) - set(PARTS):
            yield f"trains is {self.trainable}; name one or more of {PARTS}"
        if self.lora and "language" not in self.trainable:
            yield f"lora is set, but trains is {self.trainable}; add language to it, or set lora=none"
        if self.aspect != "anyres" and self.grid_pinpoints != RELEASED_GRIDS:
            yield f"grids are {', '.join(self.grid_pinpoints)}, but aspect is {self.aspect}; set aspect=anyres before them"

    def _faults_of_numbers(self) -> Iterator[str]:
        """Say which numbers are out of their range."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _POSITIVE:
            if settings[name] is not None and not 0 < settings[name] < inf:
                yield f"{name} is {settings[name]}; it must be over 0 and finite"
        for name in _MIN_ONE:
            if settings[name] is not None and settings[name] < 1:
                yield f"{name} is {settings[name]}; it must be at least 1"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas are {self.betas}; both must lie in [0, 1)"
        if not 0 <= self.warmup_ratio < 1:
            yield f"warmup_fraction is {self.warmup_ratio}; it must lie in [0, 1)"
        if self.validation_size < 0 or not 0 <= self.weight_decay < inf:
            yield "validation_rows and weight_decay must not be negative"

    def learning_rate_of(self, part: str) -> float:
        """Return the peak rate of a part."""
        special = {"projector": self.projector_learning_rate, "vision": self.vision_learning_rate}
        rate = special.get(part)
        return self.learning_rate if rate is None else rate

    def _check_names(self) -> None:
        """Check what is looked up in a table.

        Raises:
            UnknownNameError: There is no such template or aspect.
            UsageError: A grid is not written as columns x rows.
        """
        find_template(self.template)
        grid_pinpoints(self.grid_pinpoints, side=1)
        if self.aspect is not None and self.aspect not in ASPECTS:
            raise UnknownNameError("aspect", self.aspect, ASPECTS)


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
"""LLaVA-1.5's stage 2 by low-rank factors (its scripts/v1_5/finetune_lora.sh)."""
