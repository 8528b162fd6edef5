"""Values that the papers give for each recipe, entered separately from the recipes so that a typo is found.

A test compares every cited value with the recipe's field of that name, and requires a citation for every field below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

LLAVA_PAPER = "arXiv 2304.08485"
"""Visual Instruction Tuning: LLaVA."""

LLAVA_15_PAPER = "arXiv 2310.03744"
"""Improved Baselines with Visual Instruction Tuning: LLaVA-1.5."""

BLOG = "llava-vl.github.io, 2024-01-30"
"""Announcement of LLaVA-NeXT; no paper has its numbers."""

SCRIPTS = "LLaVA's scripts"
"""Folder scripts/ of haotian-liu/LLaVA."""

LLAVA_NEXT_SCRIPTS = "LLaVA-NeXT's later scripts"
"""Scripts of LLaVA-VL/LLaVA-NeXT, published after the models of January 2024, perhaps not those of their training."""

DEFAULT = "transformers' defaults"
"""Values of LLaVA's trainer for settings that its scripts do not set."""

RECIPE_FIELDS = (
    "vision",
    "language",
    "projector",
    "vision_feature_layer",
    "pretrain_data.rows",
    "finetune_data.rows",
)
"""Cited fields of a recipe."""

STAGE_FIELDS = (
    "trainable",
    "template",
    "aspect",
    "learning_rate",
    "projector_learning_rate",
    "vision_learning_rate",
    "lora",
    "batch_size",
    "loss_batch_size",
    "epochs",
    "max_length",
    "warmup_ratio",
    "weight_decay",
    "betas",
    "max_grad_norm",
    "seed",
)
"""Cited fields of each stage; `lora` is cited by its rank, alpha and dropout if there is one."""


@dataclass(frozen=True, slots=True)
class Cited:
    """One value of a paper."""

    value: object
    source: str
    note: str = ""
    """Remark on its certainty or meaning."""

    certain: bool = True
    """Whether it could be verified."""


@dataclass(frozen=True, slots=True)
class Citation:
    """Published settings of one model."""

    paper: str
    fields: Mapping[str, Cited]
    """Cited values by the dotted name of the recipe's field."""

    notes: tuple[str, ...] = ()
    """Differences of caldera, and the reasons."""


def _cite_from(source: str, **values: object) -> dict[str, Cited]:
    """Cite several fields from one source."""
    return {name: Cited(value, source) for name, value in values.items()}


def _with_notes(fields: dict[str, Cited], **notes: str) -> dict[str, Cited]:
    """Add notes to some fields."""
    return fields | {name: replace(fields[name], note=note) for name, note in notes.items()}


def _uncertain(fields: dict[str, Cited], *names: str) -> dict[str, Cited]:
    """Mark some fields as not verified."""
    return fields | {name: replace(fields[name], certain=False) for name in names}


_COMMON = _with_notes(
    _cite_from(
        f"{LLAVA_PAPER}, appendix C; {LLAVA_15_PAPER}, table 9",
        warmup_ratio=0.03,
        weight_decay=0.0,
    )
    | _cite_from(SCRIPTS, max_length=2048)
    | _cite_from(DEFAULT, betas=(0.9, 0.999), seed=42)
    | _cite_from(SCRIPTS, projector_learning_rate=None, vision_learning_rate=None, lora=None),
    warmup_ratio="the first step has rate 0, as in transformers' trainer",
    seed="the order of records and dropout come from other random numbers than LLaVA's",
)

_V1_COMMON = _with_notes(
    _COMMON | _cite_from(f"{DEFAULT}, with DDP and FSDP", max_grad_norm=1.0),
    max_grad_norm="today's scripts use DeepSpeed, which does not clip: max_grad_norm=none",
)
_V15_COMMON = _with_notes(
    _COMMON | _cite_from(f"{SCRIPTS}, zero2.json and zero3.json", max_grad_norm=None),
    max_grad_norm="LLaVA's zero2.json and zero3.json have no gradient_clipping, so DeepSpeed does not clip, and "
    "transformers leaves it to DeepSpeed; max_grad_norm=1.0 clips",
)

_V1_PRETRAIN = _with_notes(
    _V1_COMMON
    | _cite_from(f"{LLAVA_PAPER}, section 4.2", trainable=("projector",), template="v0_original")
    | _cite_from(f"{LLAVA_PAPER}, section 5", learning_rate=2e-3, batch_size=128, epochs=1)
    | _cite_from(f"{LLAVA_PAPER}, section 5: a step on 8 GPUs", loss_batch_size=16)
    | _cite_from(SCRIPTS, aspect="square"),
    template="the image was before or after the question at random (equation 2); here before it",
)
_V1_FINETUNE = _with_notes(
    _V1_COMMON
    | _cite_from(
        f"{LLAVA_PAPER}, section 4.2", trainable=("projector", "language"), template="v0_original"
    )
    | _cite_from(f"{LLAVA_PAPER}, section 5", learning_rate=2e-5, batch_size=32, epochs=3)
    | _cite_from(f"{LLAVA_PAPER}, section 5: a step on 8 GPUs", loss_batch_size=4)
    | _cite_from(SCRIPTS, aspect="square"),
    batch_size="today's scripts have 128: batch_size=128 with loss_batch_size=16",
)
_SCIENCE_QA = _V1_FINETUNE | _cite_from(f"{LLAVA_PAPER}, section 5.2", epochs=12)

_V15_PRETRAIN = (
    _V15_COMMON
    | _cite_from(f"{LLAVA_15_PAPER}, table 9", learning_rate=1e-3, batch_size=256, epochs=1)
    | _cite_from(f"{SCRIPTS}, v1_5/pretrain.sh on 8 GPUs", loss_batch_size=32)
    | _cite_from(SCRIPTS, trainable=("projector",), template="plain_original", aspect="square")
)
_V15_FINETUNE = (
    _V15_COMMON
    | _cite_from(f"{LLAVA_15_PAPER}, table 9", learning_rate=2e-5, batch_size=128, epochs=1)
    | _cite_from(f"{SCRIPTS}, v1_5/finetune.sh on 8 GPUs", loss_batch_size=16)
    | _cite_from(SCRIPTS, trainable=("projector", "language"), aspect="pad")
    | _cite_from(f"{SCRIPTS} and pyproject.toml at 44e0562", template="vicuna_v1_original_4_31")
)
_V15_LORA = (
    _V15_FINETUNE
    | _cite_from(
        f"{SCRIPTS}, v1_5/finetune_lora.sh", learning_rate=2e-4, projector_learning_rate=2e-5
    )
    | {
        "lora.rank": Cited(128, f"{SCRIPTS}, v1_5/finetune_lora.sh"),
        "lora.alpha": Cited(256.0, f"{SCRIPTS}, v1_5/finetune_lora.sh"),
        "lora.dropout": Cited(0.05, "default of LLaVA's trainer"),
    }
)
del _V15_LORA["lora"]

_NEXT_FINETUNE = _uncertain(
    _with_notes(
        _V15_FINETUNE
        | _cite_from(BLOG, trainable=("vision", "projector", "language"), aspect="anyres", epochs=1)
        | _cite_from(
            LLAVA_NEXT_SCRIPTS, learning_rate=2e-5, vision_learning_rate=2e-6, batch_size=128
        )
        | _cite_from(LLAVA_NEXT_SCRIPTS, max_length=4096, template="vicuna_v1_original")
        | _cite_from(f"{LLAVA_NEXT_SCRIPTS}, direct_finetune_clip.sh", loss_batch_size=4)
        | _cite_from(f"{LLAVA_NEXT_SCRIPTS}, zero3.json", max_grad_norm=1.0),
        learning_rate="of the script for Vicuna 7B; those for larger language models have 1e-5",
        max_grad_norm="in stage 2, gradient_clipping of LLaVA-NeXT's zero3.json is auto, the trainer's 1.0",
    ),
    *("learning_rate", "vision_learning_rate", "batch_size", "loss_batch_size", "max_grad_norm"),
    *("max_length", "epochs", "template"),
)
_NEXT_MISTRAL = _uncertain(
    _NEXT_FINETUNE
    | _cite_from("the released model's prompt", template="mistral_instruct_original"),
    "template",
)


def _cite(
    recipe: dict[str, Cited], pretrain: Mapping[str, Cited], finetune: Mapping[str, Cited]
) -> dict[str, Cited]:
    """Return the citations of a recipe and its stages under the recipe's dotted names."""
    return (
        recipe
        | {f"pretrain.{name}": cited for name, cited in pretrain.items()}
        | {f"finetune.{name}": cited for name, cited in finetune.items()}
    )


def _data(source: str, pretrain: int, finetune: int) -> dict[str, Cited]:
    """Cite the sizes of the two data sets."""
    return {
        "pretrain_data.rows": Cited(pretrain, source),
        "finetune_data.rows": Cited(finetune, source),
    }


def _v1(language: str, finetune_rows: int = 158_000) -> dict[str, Cited]:
    """Cite the parts and the data of LLaVA v1."""
    return _with_notes(
        _cite_from(
            f"{LLAVA_PAPER}, section 4.1", vision="openai/clip-vit-large-patch14", language=language
        )
        | _cite_from(f"{LLAVA_PAPER}, section 4.1", projector="linear")
        | _cite_from(SCRIPTS, vision_feature_layer=-2)
        | _data(f"{LLAVA_PAPER}, sections 4.2 and 5", 595_000, finetune_rows),
        language="Vicuna v0 is published as delta weights: add them to LLaMA first",
    )


def _v15(language: str) -> dict[str, Cited]:
    """Cite the parts and the data of LLaVA-1.5."""
    return (
        _cite_from(
            f"{LLAVA_15_PAPER}, section 3.3",
            vision="openai/clip-vit-large-patch14-336",
            language=language,
        )
        | _cite_from(f"{LLAVA_15_PAPER}, section 3.3", projector="mlp2x_gelu")
        | _cite_from(SCRIPTS, vision_feature_layer=-2)
        | _data(f"{LLAVA_15_PAPER}, tables 7 and 9", 558_128, 665_000)
    )


def _next(language: str) -> dict[str, Cited]:
    """Cite the parts and the data of LLaVA-NeXT."""
    return _uncertain(
        _v15(language)
        | _cite_from(BLOG, vision="openai/clip-vit-large-patch14-336", language=language)
        | _data(BLOG, 558_128, 760_000),
        "finetune_data.rows",
    )


_ALL_NOTES = (
    "at most a tenth of the records, at most 128, are held out to measure the loss: set validation_size=0 to train on "
    "all",
    "the order is another random one; records about the same images are in one step, where their common tokens are "
    "computed once; the last step of an epoch has what is left, where LLaVA repeats the first records",
    "the loss is the mean of the means of loss_batch_size records, LLaVA's batch of each GPU; loss_batch_size=none "
    "weights all tokens of a step the same",
    "records longer than max_length are an error or, with --max-bad-fraction, skipped; LLaVA truncates them",
    "images are upright by their EXIF orientation, and transparent ones are on white; LLaVA ignores both",
    "weights, gradients and AdamW's moments are fp32, and products bf16; LLaVA's weights, the vision tower's too, are "
    "bf16, with fp32 copies for the update",
    "rows that LLaVA's table of words does not have, such as that of the image token, take no part in the loss",
)
_V15_NOTES = (
    *_ALL_NOTES,
    "steps of LLaVA's stage 2 have only records with an image, or only records without one, sorted by length "
    "(group_by_modality_length); here both kinds are mixed",
)
_V1_NOTES = (
    *_ALL_NOTES,
    "LLaVA's table of words has a row for the padding of v0, which takes part in its loss; here it does not",
    "the original was released as delta weights for LLaMA and used Vicuna v0; any Vicuna folder of that size works",
)
_NEXT_NOTES = (
    *_V15_NOTES,
    "its data were never released: counts, batch size, learning rates and template are the best public values, and not "
    "verified",
)

CITATIONS: dict[str, Citation] = {
    "llava_7b": Citation(
        f"LLaVA, {LLAVA_PAPER}",
        _cite(_v1("lmsys/vicuna-7b-delta-v0"), _V1_PRETRAIN, _V1_FINETUNE),
        _V1_NOTES,
    ),
    "llava_13b": Citation(
        f"LLaVA, {LLAVA_PAPER}",
        _cite(_v1("lmsys/vicuna-13b-delta-v0"), _V1_PRETRAIN, _V1_FINETUNE),
        _V1_NOTES,
    ),
    "science_qa": Citation(
        f"LLaVA, {LLAVA_PAPER}, section 5.2",
        _cite(_v1("lmsys/vicuna-13b-delta-v0", 12_726), _V1_PRETRAIN, _SCIENCE_QA),
        _V1_NOTES,
    ),
    "llava_15_7b": Citation(
        f"LLaVA-1.5, {LLAVA_15_PAPER}",
        _cite(_v15("lmsys/vicuna-7b-v1.5"), _V15_PRETRAIN, _V15_FINETUNE),
        _V15_NOTES,
    ),
    "llava_15_13b": Citation(
        f"LLaVA-1.5, {LLAVA_15_PAPER}",
        _cite(_v15("lmsys/vicuna-13b-v1.5"), _V15_PRETRAIN, _V15_FINETUNE),
        _V15_NOTES,
    ),
    "llava_15_7b_lora": Citation(
        f"LLaVA-1.5, {LLAVA_15_PAPER}, and its scripts",
        _cite(_v15("lmsys/vicuna-7b-v1.5"), _V15_PRETRAIN, _V15_LORA),
        _V15_NOTES,
    ),
    "llava_next_7b": Citation(
        f"LLaVA-NeXT, {BLOG}",
        _cite(_next("lmsys/vicuna-7b-v1.5"), _V15_PRETRAIN, _NEXT_FINETUNE),
        _NEXT_NOTES,
    ),
    "llava_next_mistral_7b": Citation(
        f"LLaVA-NeXT, {BLOG}",
        _cite(_next("mistralai/Mistral-7B-Instruct-v0.2"), _V15_PRETRAIN, _NEXT_MISTRAL),
        _NEXT_NOTES,
    ),
}
"""Citations by the name of the recipe."""
