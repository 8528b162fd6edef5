"""Tiny random models in other layouts: llava-hf's, LLaVA's own, and the towers they consist of; and their import."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from caldera.errors import CalderaError
from caldera.formats.importing.import_model import ModelImportReport, import_model
from caldera.formats.importing.request import ImportRequest
from caldera.progress import NoProgress

Weights = dict[str, Tensor]

WORDS = 331
"""Tokens of the original's tokenizer and model, without the image token."""

LINES = (
    "a the dog cat bird is are on in left right yes no two one three what where how many there do you see image",
    "A chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT: The assistant gives",
    "helpful, detailed, and polite answers to the user's questions.",
)

VISION = CLIPVisionConfig(
    hidden_size=10,
    intermediate_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=6,
    patch_size=2,
    projection_dim=7,
)
SIDES: dict[str, Any] = {"size": {"shortest_edge": 6}, "crop_size": {"height": 6, "width": 6}}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 12,
    "intermediate_size": 22,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vicuna's kind of tokenizer: a SentencePiece model and two files of settings; `<unk>` pads."""
    folder = tmp_path_factory.mktemp("words")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 9),
        model_writer=model,
        vocab_size=WORDS,
        model_type="bpe",
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **marks}))
    (folder / "special_tokens_map.json").write_text(json.dumps({**marks, "pad_token": "<unk>"}))
    return folder


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A vision tower in the hub's form: with `vision_model` in its names."""
    folder = tmp_path / "clip"
    torch.manual_seed(11)
    CLIPVisionModel(VISION).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {
        f"vision_model.{name.removeprefix('vision_model.')}": weight
        for name, weight in weights.items()
    }
    weights["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    CLIPImageProcessorPil(**SIDES).save_pretrained(folder)
    return folder


@pytest.fixture
def vicuna_folder(tmp_path: Path, words_folder: Path) -> Path:
    """A language model with a SentencePiece tokenizer, its weights in torch's files."""
    folder = tmp_path / "vicuna"
    torch.manual_seed(12)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **LANGUAGE))
    model.half().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    shutil.copytree(words_folder, folder, dirs_exist_ok=True)
    return folder


def original_config(**changes: object) -> dict[str, Any]:
    """Return the config of LLaVA-1.5's own code for the tiny towers."""
    settings = LlamaConfig(vocab_size=WORDS, **LANGUAGE).to_dict()
    del (
        settings["rope_parameters"],
        settings["dtype"],
    )  # earlier releases of transformers had others
    settings |= {"rope_theta": 20000.0, "rope_scaling": None, "torch_dtype": "float16"}
    return {
        **settings,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 10,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "someone/tiny-clip",
        "tokenizer_model_max_length": 2048,
        "tune_mm_mlp_adapter": False,
        "use_mm_proj": True,
        **changes,
    }


def random_projector(prefix: str = "model.mm_projector.") -> Weights:
    """Return a two-layer projector under the original's names."""
    torch.manual_seed(13)
    shapes = {"0.weight": (12, 10), "0.bias": (12,), "2.weight": (12, 12), "2.bias": (12,)}
    return {prefix + name: torch.randn(shape).half() for name, shape in shapes.items()}


Write = Callable[..., Path]


@pytest.fixture
def write_original(tmp_path: Path, words_folder: Path, vicuna_folder: Path) -> Write:
    """Write a folder of LLaVA's own code, its weights in two files of torch's, by default."""

    def write(
        extra: Weights | None = None, *, name: str = "any name", shards: int = 2, **changes: object
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copytree(words_folder, folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps(original_config(**changes)))
        weights = torch.load(vicuna_folder / "pytorch_model.bin", weights_only=True)
        weights = {**weights, **random_projector(), **(extra or {})}
        names = sorted(weights)
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
            shard = names[number::shards]
            torch.save({weight: weights[weight] for weight in shard}, folder / file)
            weight_map |= dict.fromkeys(shard, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return folder

    return write


def tower_inside(clip_folder: Path, factor: float) -> Weights:
    """Return a vision tower's weights under LLaVA's own names, scaled so that they differ from the tower's."""
    return {
        f"model.vision_tower.vision_tower.{name}": weight * factor
        for name, weight in load_file(clip_folder / "model.safetensors").items()
        if not name.endswith("position_ids")
    }


@pytest.fixture
def llava_next(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A llava-hf folder of LLaVA-NeXT that transformers wrote, with grids of 1 x 2 and 3 x 1 tiles."""
    folder, with_image = tmp_path / "next", add_image_token(tokenizer)
    torch.manual_seed(16)
    config = LlavaNextConfig(
        vision_config=VISION,
        text_config=LlamaConfig(vocab_size=384, **LANGUAGE),
        image_token_index=with_image.get_vocab()["<image>"],
        image_grid_pinpoints=[[6, 12], [18, 6]],
        image_seq_length=9,
    )
    LlavaNextForConditionalGeneration(config).save_pretrained(folder)
    LlavaNextProcessor(
        LlavaNextImageProcessorPil(**SIDES, image_grid_pinpoints=[[6, 12], [18, 6]]),
        with_image,
        patch_size=2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def llava_hf(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A llava-hf folder that transformers wrote."""
    return write_llava_hf(tmp_path / "hub", tokenizer)


def add_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer with an image and a padding token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )


def write_llava_hf(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a llava-hf folder of a random model."""
    with_image = add_image_token(tokenizer)
    torch.manual_seed(14)
    config = LlavaConfig(
        vision_config=VISION,
        text_config=LlamaConfig(vocab_size=384, **LANGUAGE),
        image_token_index=with_image.get_vocab()["<image>"],
        image_seq_length=9,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessorPil(**SIDES),
        with_image,
        patch_size=2,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{{ cycler.__init__.__globals__.os.system('touch /tmp/never') }}",
    ).save_pretrained(folder)
    return folder


def hf_name(name: str) -> str:
    """Return llava-hf's name of an original weight, by a table of names."""
    for original, hf in {
        "model.mm_projector.0.": "multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "multi_modal_projector.linear_2.",
        "model.vision_tower.vision_tower.": "vision_tower.",
    }.items():
        if name.startswith(original):
            return hf + name.removeprefix(original)
    return f"language_model.{name}"


def read_torch_files(folder: Path) -> Weights:
    """Read all torch files of a folder by torch's own reader."""
    weights: Weights = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        weights |= torch.load(file, weights_only=True)
    return {name: weight for name, weight in weights.items() if "inv_freq" not in name}


def run_import(out: Path, **settings: Any) -> ModelImportReport:  # noqa: ANN401 - fields of ImportRequest
    """Import a model, by default with LLaVA-1.5's template."""
    request = ImportRequest(**{"template": "vicuna_v1", **settings})
    return import_model(request, out, NoProgress())


def assert_rejected(tmp_path: Path, message: str, **settings: Any) -> None:  # noqa: ANN401 - fields of ImportRequest
    """Check that an import fails in one line with the exit code for bad input, and writes nothing."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CalderaError, match=message) as caught:
        run_import(tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert sorted(tmp_path.iterdir()) == before
