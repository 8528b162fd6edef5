"""Random models of `benchmarks/gpu_check.py`, created on the device, and transformers' model of the same weights."""

from dataclasses import replace

import serve_models
import torch
from serve_models import Size
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from caldera.formats.assemble import add_special_tokens
from caldera.formats.tokenizer import load_tokenizer
from caldera.images.processor import ImageProcessor
from caldera.model.bundle import LlavaBundle, ModelMetadata
from caldera.model.llava import Llava
from caldera.model.projector import build_projector
from caldera.model.vision_tower import VisionTower
from caldera.scenes.backbones import find_backbone
from caldera.templates.registry import find_template

SIZES = {
    "tiny": Size(64, 16, (64, 3, 2), (96, 3, 3, 1), 192, 8_192, 0.1),
    "26m": replace(serve_models.SIZES["26m"], deviation=0.05),
    "1.1b": serve_models.SIZES["1.1b"],
    "7b": Size(336, 14, (1024, 24, 16), (4096, 32, 32, 32), 11_008, 32_064),
}
"""Two for comparisons with a CPU, TinyLlama's and LLaVA-1.5-7B's shape."""


def random_model(size: Size, device: torch.device, dtype: torch.dtype) -> LlavaBundle:
    """Create a model of random weights on a device, the same at every call."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(find_backbone("scenes-llama"))
    tokenizer.model_max_length = 4096
    with torch.device(device):
        tower = CLIPVisionModel._from_config(size.vision_config(), dtype=dtype)
        language = AutoModelForCausalLM.from_config(size.language_config(), dtype=dtype)
        connector = build_projector("mlp2x_gelu", size.vision[0], size.language[0]).to(dtype)
    image_id = add_special_tokens(tokenizer, language, find_template("vicuna_v1"))
    processor = ImageProcessor(side=size.side, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model = Llava(VisionTower(tower, size.side), connector, language, image_id)
    return LlavaBundle(model.eval(), tokenizer, processor, ModelMetadata())


def as_transformers(assistant: LlavaBundle) -> LlavaForConditionalGeneration:
    """Return transformers' model; it holds the very weights of the assistant."""
    llava = assistant.model
    config = LlavaConfig(
        vision_config=llava.vision.tower.config,
        text_config=llava.language.config,
        image_token_index=llava.image_token_id,
        vision_feature_layer=llava.vision.select_layer,
        vision_feature_select_strategy="default",
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = llava.vision.tower
    model.model.language_model = llava.language.base_model
    model.lm_head = llava.language.get_output_embeddings()
    first, second = llava.projector.layers
    model.model.multi_modal_projector.linear_1 = first
    model.model.multi_modal_projector.linear_2 = second
    remaining = [name for name, weight in model.named_parameters() if weight.is_meta]
    assert not remaining, remaining
    return model.eval()


def transformers_processor(assistant: LlavaBundle, size: Size) -> LlavaProcessor:
    """Return transformers' processor of an assistant."""
    tokenizer = assistant.tokenizer
    return LlavaProcessor(
        size.image_processor(),
        tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        image_token=tokenizer.convert_ids_to_tokens(assistant.model.image_token_id),
        num_additional_image_tokens=1,
    )
