"""Settings of LoRA, apart from its layers: they are read without torch, which takes seconds to import."""

from dataclasses import dataclass

from caldera.errors import check_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Settings of LoRA; the defaults are LLaVA-1.5's (its finetune_lora.sh)."""

    rank: int = 128
    """Rank of the matrices."""

    alpha: float = 256.0
    """The product of the matrices is scaled by alpha / rank."""

    dropout: float = 0.05
    """Fraction of the inputs that is dropped in training."""

    targets: tuple[str, ...] = ()
    """Last parts of the names of the linear layers with LoRA, such as q_proj; all but the head if empty."""

    def __post_init__(self) -> None:
        """Check every setting, and name all that are invalid."""
        check_ranges(self, {"rank": "[1, inf]", "alpha": "(0, inf)", "dropout": "[0, 1)"}, "lora")
