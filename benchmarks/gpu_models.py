"""Random models of `benchmarks/gpu_check.py`, created on the device, and transformers' model of the same weights."""

from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
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


@dataclass(frozen=True)
class Size:
    """Sizes of the two towers."""

    side: int
    patch: int
    vision: tuple[int, int, int]
    """Width, layers and heads."""

    language: tuple[int, int, int, int]
    """Width, layers, heads and key heads."""

    inner: int
    """Hidden size of the language model's MLP."""

    vocabulary: int

    deviation: float = 0.02
    """Standard deviation of the language model's weights; larger ones make attention, and so a wrong mask, count."""


SIZES = {
    "tiny": Size(64, 16, (64, 3, 2), (96, 3, 3, 1), 192, 8_192, 0.1),
    "26m": Size(112, 16, (384, 6, 6), (384, 8, 6, 2), 1024, 8_192, 0.05),
    "1.1b": Size(336, 14, (1024, 24, 16), (2048, 22, 32, 4), 5632, 32_064),
    "7b": Size(336, 14, (1024, 24, 16), (4096, 32, 32, 32), 11_008, 32_064),
}
"""Two for comparisons with a CPU, TinyLlama's and LLaVA-1.5-7B's shape."""


def random_model(size: Size, device: torch.device, dtype: torch.dtype) -> LlavaBundle:
    """Create a model of random weights on a device, the same at every call."""
    torch.manual_seed(0)
    vision_width, vision_layers, vision_heads = size.vision
    width, layers, heads, key_heads = size.language
    tokenizer = load_tokenizer(find_backbone("scenes-llama"))
    tokenizer.model_max_length = 4096
    with torch.device(device):
        tower = CLIPVisionModel._from_config(
            CLIPVisionConfig(
                image_size=size.side, patch_size=size.patch, hidden_size=vision_width,
                num_hidden_layers=vision_layers, num_attention_heads=vision_heads,
                intermediate_size=4 * vision_width, projection_dim=vision_width,
            ),
            dtype=dtype,
        )  # fmt: skip
        language = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=size.vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=key_heads, intermediate_size=size.inner, max_position_embeddings=4096,
                initializer_range=size.deviation,
            ),
            dtype=dtype,
        )  # fmt: skip
        connector = build_projector("mlp2x_gelu", vision_width, width).to(dtype)
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
    square = {"height": size.side, "width": size.side}
    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": size.side}, crop_size=square),
        tokenizer,
        patch_size=size.patch,
        vision_feature_select_strategy="default",
        image_token=tokenizer.convert_ids_to_tokens(assistant.model.image_token_id),
        num_additional_image_tokens=1,
    )
