"""A saved model folder holds what vLLM 0.32.0 and SGLang 0.5.23 read, or names what they refuse.

The tables below are facts of their loaders, each beside the file that holds it. tests/reference/test_in_vllm.py runs
vLLM itself.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.assemble import assemble, with_image_aspect
from caldera.formats.chat_template import folder_chat_template, require_known_template
from caldera.formats.model_folder import save_model_folder
from caldera.images.anyres import ONEVISION_GRIDS, grid_pinpoints
from caldera.inference.prompts import PromptBuilder
from caldera.model.bundle import LlavaBundle
from caldera.templates.registry import TEMPLATES
from tests.real_tokenizers import TOKENIZERS, make_tokenizer
from tests.tiny_languages import LANGUAGES, WIDTHS

ARCHITECTURES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}
"""vllm/model_executor/models/registry.py; SGLang runs them through transformers (srt/models/transformers.py)."""

TEXT_ARCHITECTURES = {
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
}
"""Of vllm/model_executor/models/registry.py, those of these tests."""

VISION_TYPES = {"clip_vision_model", "siglip_vision_model"}
"""vllm/model_executor/models/llava.py, init_vision_tower_for_llava: others raise NotImplementedError."""

TRANSFORMERS_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.vision_model.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
    "image_newline": "model.image_newline",
}
"""sglang/srt/models/transformers.py, MultiModalMixin; vLLM's own names are those on disk."""

ROPE = LlamaConfig(
    **WIDTHS, rope_parameters={"rope_theta": 5e5, "rope_type": "linear", "factor": 2}
)

KINDS: dict[str, tuple[str, PretrainedConfig, dict[str, Any]]] = {
    "square": ("clip", LANGUAGES["llama"], {"aspect": "square"}),
    "pad": ("clip", LANGUAGES["llama"], {"aspect": "pad"}),
    "anyres": ("clip", LANGUAGES["llama"], {"aspect": "anyres"}),
    "class token": ("clip", LANGUAGES["llama"], {"feature_select": "cls_patch"}),
    "siglip": ("siglip", LANGUAGES["qwen3"], {"vision_feature_layer": -1, "template": "qwen"}),
    "siglip, anyres": ("siglip", LANGUAGES["qwen2"], {"aspect": "anyres", "template": "qwen"}),
    "onevision": ("siglip", LANGUAGES["qwen2"], {"aspect": "onevision", "template": "qwen"}),
    "mistral": ("clip", LANGUAGES["mistral"], {"aspect": "anyres", "template": "mistral_instruct"}),
    "tied": ("clip", LANGUAGES["smollm"], {}),
    "gemma": ("clip", LANGUAGES["gemma"], {"template": "gemma"}),
    "phi3": ("clip", LANGUAGES["phi3"], {"template": "phi"}),
    "scaled rotary": ("clip", ROPE, {}),
}
"""Kinds of models that vLLM runs: vision tower, language model, settings of `assemble`."""

Make = Callable[..., tuple[LlavaBundle, Path]]


@pytest.fixture
def make(tmp_path: Path, vision_folder: Path, tokenizer: PreTrainedTokenizerFast) -> Make:
    """Return a function that saves a random model, and returns it and its folder."""

    def save(vision: Path | None, language: PretrainedConfig, **settings: Any) -> Any:  # noqa: ANN401
        language.update({"vocab_size": len(tokenizer)})
        torch.manual_seed(6)
        AutoModelForCausalLM.from_config(language).save_pretrained(tmp_path / "language")
        tokenizer.save_pretrained(tmp_path / "language")
        onevision = settings.get("aspect") == "onevision"
        settings |= {"aspect": "square"} if onevision else {}
        bundle = assemble(vision or vision_folder, tmp_path / "language", seed=3, **settings)
        if onevision:
            grids = grid_pinpoints(ONEVISION_GRIDS, bundle.processor.side)
            bundle = with_image_aspect(bundle, "anyres", grids, 9)
        save_model_folder(tmp_path / "model", bundle)
        return bundle, tmp_path / "model"

    return save


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP tower of 3 x 3 patches."""
    folder = tmp_path_factory.mktemp("siglip")
    shape: dict[str, Any] = {"hidden_size": 10, "intermediate_size": 14, "num_hidden_layers": 3}
    config = SiglipVisionConfig(**shape, num_attention_heads=2, image_size=6, patch_size=2)
    SiglipVisionModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 6, "width": 6}).save_pretrained(folder)
    return folder


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, make: Make, siglip: Path) -> tuple[LlavaBundle, Path]:
    """A model of each kind, and its folder."""
    vision, language, settings = KINDS[request.param]
    return make(siglip if vision == "siglip" else None, language, **settings)


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image."""
    with Image.open(path) as image:
        return image.size


def vllm_image_tokens(config: PretrainedConfig, width: int, height: int) -> int:
    """Count the tokens of an image as vllm/model_executor/models/llava.py, llava_next.py and llava_onevision.py do."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    has_class_token = vision.model_type == "clip_vision_model"
    base = side**2 + has_class_token - (config.vision_feature_select_strategy == "default")
    if config.model_type == "llava":
        return base
    rows, columns = (
        side * tiles
        for tiles in get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, vision.image_size
        )
    )
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    if config.model_type == "llava_onevision":
        ratio = (rows * columns / (9 * side**2)) ** 0.5
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return base + rows * (columns + 1)


def test_the_files_are_those_that_the_servers_read(
    saved: tuple[LlavaBundle, Path], photos: Path
) -> None:
    """Config, weights and prompts of each kind; no setting is one that a loader would guess."""
    bundle, folder = saved
    check_config(bundle, folder)
    check_weights(folder)
    check_former_names(folder)
    check_prompts(bundle, folder, photos)


def check_config(bundle: LlavaBundle, folder: Path) -> None:
    """Check the settings that vllm/model_executor/models/llava.py reads."""
    config = read_json(folder / "config.json")
    text, vision = config["text_config"], config["vision_config"]
    assert config["architectures"] == [ARCHITECTURES[config["model_type"]]]
    assert set(text["architectures"]) <= TEXT_ARCHITECTURES
    assert vision["model_type"] in VISION_TYPES
    assert vision["image_size"] == bundle.processor.side  # else vLLM refuses the pixels
    assert isinstance(config["vision_feature_layer"], int)
    assert config["projector_hidden_act"] == "gelu"
    assert config["multimodal_projector_bias"] is True
    assert config["tie_word_embeddings"] == text["tie_word_embeddings"]
    assert config["image_token_index"] == bundle.model.image_token_id < text["vocab_size"]
    generation = read_json(folder / "generation_config.json")  # vLLM's default sampling
    assert bundle.tokenizer.eos_token_id in generation["eos_token_id"]
    assert not {"temperature", "top_p", "do_sample"} & generation.keys()


def check_weights(folder: Path) -> None:
    """Check names and shapes against transformers' class, through the prefixes that the loaders map."""
    stored: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            stored |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    mapped = {}
    for name, shape in stored.items():
        (prefix,) = (prefix for prefix in TRANSFORMERS_NAMES if name.startswith(prefix))
        mapped[TRANSFORMERS_NAMES[prefix] + name.removeprefix(prefix)] = shape
    assert mapped == expected


def check_former_names(folder: Path) -> None:
    """Check what transformers 4.57 reads, which earlier releases of the servers use."""
    text = read_json(folder / "config.json")["text_config"]
    rope = text["rope_parameters"]
    assert text["rope_theta"] == rope["rope_theta"]
    assert text.get("rope_scaling", {}).get("factor") == rope.get("factor")
    assert AutoConfig.from_pretrained(folder).text_config.rope_parameters == rope
    tokens = read_json(folder / "tokenizer_config.json")
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<image>" in tokens["additional_special_tokens"]
    assert "extra_special_tokens" not in tokens  # a list here is an AttributeError
    nested = read_json(folder / "processor_config.json")["image_processor"]
    assert nested.items() <= read_json(folder / "preprocessor_config.json").items()
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<image>") is not None


def check_prompts(bundle: LlavaBundle, folder: Path, photos: Path) -> None:
    """Check that a rendered chat, tokenized as the servers do, is caldera's prompt."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(AutoImageProcessor.from_pretrained(folder)).__name__.endswith("ImageProcessorPil")
    template = (folder / "chat_template.jinja").read_text()
    question = ("\nwhat is there?", "what is on the left?")
    for count in range(3):
        paths = [photos / f"{number}.png" for number in range(count)]
        parts: tuple[str | ImageRef, ...] = (
            *(ImageRef(str(path)) for path in paths),
            question[count != 1],
        )
        content = [*[{"type": "image"}] * count, {"type": "text", "text": question[count != 1]}]
        chat: Any = [{"role": "user", "content": content}]
        ids = tokenizer.apply_chat_template(
            chat,
            chat_template=template,
            add_generation_prompt=True,
            return_dict=False,
        )
        slots = [*paths]
        expanded = []
        for token in ids:
            size = image_size(slots.pop(0)) if token == config.image_token_index else None
            expanded += [token] * (vllm_image_tokens(config, *size) if size else 1)
        prompt = PromptBuilder(bundle).from_files(Conversation("q", (Turn("user", parts),)))
        if config.model_type != "llava_onevision" or count < 2:
            assert expanded == list(prompt.ids)


def test_the_processor_loads_by_itself(make: Make) -> None:
    """AutoProcessor gives the class that vLLM asks for, and the number of image tokens of the model."""
    bundle, folder = make(None, LANGUAGES["llama"], aspect="pad")
    processor = AutoProcessor.from_pretrained(folder)
    assert type(processor).__name__ == "LlavaProcessor"
    assert processor.image_token == "<image>"
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (19, 7))}]}],
        tokenize=True,
        return_dict=True,
    )
    (ids,) = inputs["input_ids"]
    assert ids.count(bundle.model.image_token_id) == bundle.model.vision.tokens_per_view
    assert ids.count(bundle.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_chat_holds_the_start_token(kind: str) -> None:
    """With every template and kind of tokenizer, the ids are those that the tokenizer gives with its own token."""
    tokenizer = make_tokenizer(kind)
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    chat: Any = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a cat"}]
    for name in TEMPLATES:
        source = folder_chat_template(name, tokenizer)
        options: dict[str, Any] = {"chat_template": source, "return_dict": False}
        text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
        start = tokenizer.bos_token if source.startswith("{{ bos_token }}") else ""
        without = str(text).removeprefix(start or "").removeprefix(" " if start else "")
        assert tokenizer.apply_chat_template(chat, **options) == tokenizer(without).input_ids


@pytest.mark.parametrize("kind", ["llama", "llama legacy"])
def test_a_template_with_a_start_token_is_detected(kind: str, tmp_path: Path) -> None:
    """A folder without `caldera.json` still has a known template, also where a space follows the start token."""
    tokenizer = make_tokenizer(kind)
    (tmp_path / "chat_template.jinja").write_text(folder_chat_template("vicuna_v1", tokenizer))
    assert require_known_template(tmp_path, tokenizer) == "vicuna_v1"


def test_other_towers_are_refused_by_name(make: Make, tmp_path: Path, vision_folder: Path) -> None:
    """DINOv2 has transformers' class, but its config's type is none that vLLM's loader takes."""
    settings: dict[str, Any] = {"hidden_size": 10, "num_hidden_layers": 3, "num_attention_heads": 2}
    settings |= {"image_size": 6, "patch_size": 2}
    Dinov2Model(Dinov2Config(**settings)).save_pretrained(tmp_path / "dinov2")
    processor = (vision_folder / "preprocessor_config.json").read_text()
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(processor)
    _, folder = make(tmp_path / "dinov2", LANGUAGES["llama"])
    assert read_json(folder / "config.json")["vision_config"]["model_type"] not in VISION_TYPES


@pytest.mark.parametrize("reason", ["linear", "language"])
def test_inexpressible_models_have_no_known_type(
    make: Make,
    reason: str,
    language_folder: Path,
    vision_folder: Path,
    gpt2_folder: Path,
    tmp_path: Path,
) -> None:
    """No loader has their architecture, and transformers, which reads the config for both servers, refuses the type."""
    settings: dict[str, Any] = {"projector": "linear"} if reason == "linear" else {}
    language = language_folder if reason == "linear" else gpt2_folder
    save_model_folder(tmp_path / "m", assemble(vision_folder, language, **settings))
    config = read_json(tmp_path / "m" / "config.json")
    assert not {*config["architectures"]} & {*ARCHITECTURES.values()}
    with pytest.raises(ValueError, match="caldera_llava"):
        AutoConfig.from_pretrained(tmp_path / "m")
