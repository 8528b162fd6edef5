"""Recipes of the papers: LLaVA v1, LLaVA-1.5, LLaVA-NeXT, and LLaVA on ScienceQA.

`citations.py` has the papers' values, entered separately, and a test compares the two.
"""

from dataclasses import dataclass, replace

from caldera.recipes.recipe import Recipe
from caldera.training.hyperparameters import FINETUNE, FINETUNE_LORA, PRETRAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """Data set that the user provides."""

    name: str
    rows: int
    """Number of records in the paper."""

    file: str
    """Name of the published file, in LLaVA's JSON."""

    images: tuple[str, ...]
    """Folders that must be in the one given as --images."""

    source: str
    """Where to get it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperRecipe(Recipe):
    """Recipe whose data and towers the user provides."""

    pretrain_data: DatasetInfo
    finetune_data: DatasetInfo


CC3M_595K = DatasetInfo(
    name="CC3M-595K",
    rows=595_000,
    file="chat.json",
    images=(),
    source="liuhaotian/LLaVA-CC3M-Pretrain-595K on the Hugging Face hub, images.zip unpacked",
)
LCS_558K = DatasetInfo(
    name="LCS-558K",
    rows=558_128,
    file="blip_laion_cc_sbu_558k.json",
    images=(),
    source="liuhaotian/LLaVA-Pretrain on the Hugging Face hub, images.zip unpacked",
)
INSTRUCT_158K = DatasetInfo(
    name="LLaVA-Instruct-158K",
    rows=158_000,
    file="llava_instruct_150k.json",
    images=(),
    source="liuhaotian/LLaVA-Instruct-150K on the Hugging Face hub; images: COCO train2017",
)
MIX_665K = DatasetInfo(
    name="LLaVA-1.5's mix",
    rows=665_000,
    file="llava_v1_5_mix665k.json",
    images=(
        "coco/train2017",
        "gqa/images",
        "ocr_vqa/images",
        "textvqa/train_images",
        "vg/VG_100K",
        "vg/VG_100K_2",
    ),
    source="liuhaotian/LLaVA-Instruct-150K on the Hugging Face hub; images: COCO, GQA, OCR-VQA (saved as .jpg), "
    "TextVQA, Visual Genome, each from its own site",
)
NEXT_760K = DatasetInfo(
    name="LLaVA-NeXT's mix",
    rows=760_000,
    file="llava_next.json",
    images=(),
    source="never released; lmms-lab/LLaVA-NeXT-Data on the Hugging Face hub is a later release of its authors with "
    "about as many records, to be converted to LLaVA's JSON",
)
SCIENCE_QA = DatasetInfo(
    name="ScienceQA train",
    rows=12_726,
    file="llava_train_QCM-LEA.json",
    images=("train",),
    source="ScienceQA's problems.json and pid_splits.json, converted to LLaVA's JSON by caldera data import scienceqa",
)


def llava_7b() -> PaperRecipe:
    """Return LLaVA v1 with Vicuna 7B: a linear projector, 224 pixels, dialogues about COCO."""
    return PaperRecipe(
        name="llava_7b",
        pretrain_data=CC3M_595K,
        finetune_data=INSTRUCT_158K,
        vision="openai/clip-vit-large-patch14",
        language="lmsys/vicuna-7b-delta-v0",
        projector="linear",
        pretrain=replace(
            PRETRAIN,
            template="v0_original",
            aspect="square",
            learning_rate=2e-3,
            batch_size=128,
            loss_batch_size=16,
            micro_batch_size=16,
        ),
        finetune=replace(
            FINETUNE,
            template="v0_original",
            aspect="square",
            batch_size=32,
            loss_batch_size=4,
            micro_batch_size=4,
            epochs=3,
        ),
    )


def llava_13b() -> PaperRecipe:
    """Return LLaVA v1 with Vicuna 13B, the size that its tables report."""
    return replace(llava_7b(), name="llava_13b", language="lmsys/vicuna-13b-delta-v0")


def science_qa() -> PaperRecipe:
    """Return LLaVA 13B fine-tuned on ScienceQA alone, whose answers follow the reasons."""
    base = llava_13b()
    return replace(
        base,
        name="science_qa",
        finetune_data=SCIENCE_QA,
        finetune=replace(base.finetune, epochs=12),
    )


def llava_15_7b() -> PaperRecipe:
    """Return LLaVA-1.5 with Vicuna 7B: an MLP projector, 336 pixels, padded images, academic data sets in the mix."""
    return PaperRecipe(
        name="llava_15_7b",
        pretrain_data=LCS_558K,
        finetune_data=MIX_665K,
        vision="openai/clip-vit-large-patch14-336",
        language="lmsys/vicuna-7b-v1.5",
        pretrain=replace(
            PRETRAIN,
            template="plain_original",
            aspect="square",
            loss_batch_size=32,
            micro_batch_size=32,
            max_grad_norm=None,
        ),
        finetune=replace(
            FINETUNE,
            template="vicuna_v1_original_4_31",
            aspect="pad",
            loss_batch_size=16,
            micro_batch_size=16,
            max_grad_norm=None,
        ),
    )


def llava_15_13b() -> PaperRecipe:
    """Return LLaVA-1.5 with Vicuna 13B."""
    return replace(llava_15_7b(), name="llava_15_13b", language="lmsys/vicuna-13b-v1.5")


def llava_15_7b_lora() -> PaperRecipe:
    """Return LLaVA-1.5 with Vicuna 7B and LoRA in stage 2."""
    return replace(
        llava_15_7b(),
        name="llava_15_7b_lora",
        finetune=replace(
            FINETUNE_LORA,
            template="vicuna_v1_original_4_31",
            aspect="pad",
            loss_batch_size=16,
            micro_batch_size=16,
            max_grad_norm=None,
        ),
    )


def llava_next_7b() -> PaperRecipe:
    """Return LLaVA-NeXT with Vicuna 7B: images in tiles, and a trainable vision tower."""
    base = llava_15_7b()
    return replace(
        base,
        name="llava_next_7b",
        finetune_data=NEXT_760K,
        finetune=replace(
            FINETUNE,
            trainable=("vision", "projector", "language"),
            vision_learning_rate=2e-6,
            template="vicuna_v1_original",
            aspect="anyres",
            loss_batch_size=4,
            micro_batch_size=4,
            max_length=4096,
        ),
    )


def llava_next_mistral_7b() -> PaperRecipe:
    """Return LLaVA-NeXT with Mistral 7B."""
    base = llava_next_7b()
    return replace(
        base,
        name="llava_next_mistral_7b",
        language="mistralai/Mistral-7B-Instruct-v0.2",
        finetune=replace(base.finetune, template="mistral_instruct_original"),
    )
