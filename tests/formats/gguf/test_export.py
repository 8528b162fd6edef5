"""Exported GGUF files hold the folder's weights under llama.cpp's names and in its order, or are not written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import ModelFormatError, OutputError
from caldera.formats.assemble import assemble
from caldera.formats.gguf.export import chat_template_of, gguf_files, write_gguf_files
from caldera.formats.gguf.vision_tower import ClassToken
from caldera.formats.gguf.writer import GgufDtype
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import encode
from caldera.templates.registry import find_template

WIDTHS: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LANGUAGES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**WIDTHS),
    "mistral": MistralConfig(**WIDTHS, sliding_window=128),
    "qwen2": Qwen2Config(**WIDTHS, tie_word_embeddings=True),
}
STEP = 1 / 127
"""Step of Q8_0 relative to the largest of 32 neighbors."""


@pytest.fixture
def exported(
    tmp_path: Path, vision_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[Path, Path]]:
    """Return a function that exports a model folder with a given language model."""

    def export(
        config: PretrainedConfig, dtype: GgufDtype, projector: str = "mlp2x_gelu"
    ) -> tuple[Path, Path]:
        torch.manual_seed(11)
        config.vocab_size = len(tokenizer)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # zero in a fresh model
                torch.nn.init.normal_(weight)
        model.save_pretrained(tmp_path / "language")
        tokenizer.save_pretrained(tmp_path / "language")
        assistant = assemble(vision_folder, tmp_path / "language", seed=3, projector=projector)
        save_model_folder(tmp_path / "model", assistant)
        write_gguf_files(tmp_path / "model", tmp_path / "out", dtype, NoProgress())
        return tmp_path / "model", tmp_path / "out"

    return export


def tensors(file: Path) -> dict[str, np.ndarray]:
    """Return a file's tensors, dequantized."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_language_model_gives_the_same_logits(
    exported: Callable[..., tuple[Path, Path]], name: str
) -> None:
    """Transformers' reader of GGUF files, which undoes llama.cpp's order of rows, gives the folder's logits."""
    folder, out = exported(LANGUAGES[name], "f32")
    from_gguf = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model.gguf", dtype=torch.float32
    )
    ids = torch.tensor([[1, 5, 17, 3, 29, 40, 7]])
    with torch.no_grad():
        actual = from_gguf(ids).logits
        expected = load_model_folder(folder).model.language(ids).logits
    torch.testing.assert_close(actual, expected[..., : actual.shape[-1]], atol=2e-4, rtol=0)


def test_f16_rounds_matrices_and_keeps_vectors(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """Matrices are rounded to fp16; norms and biases are the folder's bit for bit."""
    folder, out = exported(LANGUAGES["qwen2"], "f16")
    state = load_model_folder(folder).model.language.state_dict()
    exported_tensors = tensors(out / "model.gguf")
    down = state["model.layers.2.mlp.down_proj.weight"].numpy()
    assert np.array_equal(exported_tensors["blk.2.ffn_down.weight"], down.astype(np.float16))
    assert not np.array_equal(exported_tensors["blk.2.ffn_down.weight"], down)
    for gguf_name, name in (
        ("attn_norm.weight", "input_layernorm.weight"),
        ("attn_k.bias", "self_attn.k_proj.bias"),
    ):
        assert np.array_equal(
            exported_tensors[f"blk.1.{gguf_name}"], state[f"model.layers.1.{name}"].numpy()
        )


def test_q8_0_stays_within_half_a_step(exported: Callable[..., tuple[Path, Path]]) -> None:
    """No error exceeds half a step of 32 neighbors plus the rounding of their scale to fp16."""
    folder, out = exported(LANGUAGES["llama"], "q8_0")
    expected = (
        load_model_folder(folder).model.language.state_dict()["model.embed_tokens.weight"].numpy()
    )
    quantized = tensors(out / "model.gguf")["token_embd.weight"]
    blocks = np.abs(expected).reshape(-1, 32).max(axis=1, keepdims=True)
    error = np.abs(quantized - expected).reshape(-1, 32)
    assert (error <= blocks * (STEP / 2 + 2**-10)).all()
    assert error.max() > 0


def test_rows_that_do_not_divide_become_f16(exported: Callable[..., tuple[Path, Path]]) -> None:
    """Q8_0 needs rows of whole blocks, which a tower of width 10 does not have."""
    _, out = exported(LANGUAGES["llama"], "q8_0")
    types = {
        tensor.name: tensor.tensor_type.name
        for tensor in gguf.GGUFReader(out / "mmproj.gguf").tensors
    }
    assert types["v.blk.0.attn_q.weight"] == "F16"
    assert types["mm.2.weight"] == "Q8_0"
    assert types["v.position_embd.weight"] == types["v.blk.0.ln1.bias"] == "F32"


@pytest.mark.parametrize("class_token", ["first", "last"])
def test_tower_and_projector_are_the_folders(
    tmp_path: Path, assistant: LlavaBundle, class_token: ClassToken
) -> None:
    """The file holds the layers up to the chosen one, and positions in the order in which llama.cpp adds them."""
    save_model_folder(tmp_path / "model", assistant)
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress(), class_token)
    exported_tensors = tensors(tmp_path / "out" / "mmproj.gguf")
    state = {
        name.removeprefix("vision_model."): weight.numpy()
        for name, weight in assistant.model.vision.tower.state_dict().items()
    }
    assert assistant.model.vision.tower.config.num_hidden_layers == 3
    assert {name.split(".")[2] for name in exported_tensors if name.startswith("v.blk")} == {
        "0",
        "1",
    }
    assert not any("post" in name for name in exported_tensors)
    for gguf_name, name in {
        "v.class_embd": "embeddings.class_embedding",
        "v.patch_embd.weight": "embeddings.patch_embedding.weight",
        "v.pre_ln.bias": "pre_layrnorm.bias",
        "v.blk.1.attn_out.weight": "encoder.layers.1.self_attn.out_proj.weight",
        "v.blk.1.ffn_up.weight": "encoder.layers.1.mlp.fc1.weight",
        "v.blk.1.ffn_down.bias": "encoder.layers.1.mlp.fc2.bias",
    }.items():
        assert np.array_equal(exported_tensors[gguf_name], state[name]), gguf_name
    positions = state["embeddings.position_embedding.weight"]
    if class_token == "last":
        positions = np.roll(positions, -1, axis=0)
    assert np.array_equal(exported_tensors["v.position_embd.weight"], positions)
    linear = assistant.model.projector.layers
    assert np.array_equal(exported_tensors["mm.0.weight"], linear[0].weight.detach().numpy())
    assert np.array_equal(exported_tensors["mm.2.bias"], linear[1].bias.detach().numpy())
    reader = gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf")
    fields = {
        name: reader.get_field(f"clip.vision.{name}") for name in ("block_count", "feature_layer")
    }
    assert {name: field.contents() for name, field in fields.items() if field} == {
        "block_count": 2,
        "feature_layer": [2],
    }


def test_a_linear_projector_becomes_two_equivalent_layers(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """Two layers with GELU between them, in both of its forms, compute v1's single layer."""
    folder, out = exported(LANGUAGES["llama"], "f32", projector="linear")
    layer = load_model_folder(folder).model.projector
    exported_tensors = {
        name: torch.from_numpy(value.copy()) for name, value in tensors(out / "mmproj.gguf").items()
    }
    patches = 5 * torch.randn(7, layer.layers[0].in_features)
    for form in ("none", "tanh"):
        inner = torch.nn.functional.gelu(
            patches @ exported_tensors["mm.0.weight"].T + exported_tensors["mm.0.bias"],
            approximate=form,
        )
        output = inner @ exported_tensors["mm.2.weight"].T + exported_tensors["mm.2.bias"]
        torch.testing.assert_close(output, layer(patches), atol=1e-5, rtol=1e-5)


def test_a_siglip_tower_has_no_class_token(tmp_path: Path, language_folder: Path) -> None:
    """Its positions keep their order, its patches have a bias, and its activation is set."""
    torch.manual_seed(7)
    config = SiglipVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=6,
        patch_size=2,
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "vision")
    SiglipImageProcessorPil(size={"height": 6, "width": 6}).save_pretrained(tmp_path / "vision")
    save_model_folder(tmp_path / "model", assemble(tmp_path / "vision", language_folder, seed=3))
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress())
    exported_tensors = tensors(tmp_path / "out" / "mmproj.gguf")
    assert "v.class_embd" not in exported_tensors
    assert exported_tensors["v.position_embd.weight"].shape == (9, 10)
    assert exported_tensors["v.patch_embd.bias"].shape == (10,)
    assert gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf").get_field("clip.use_gelu")


def test_a_class_token_among_the_image_tokens_is_rejected(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """llama.cpp drops the class token, so nothing is written."""
    assistant = assemble(vision_folder, language_folder, seed=3, feature_select="cls_patch")
    save_model_folder(tmp_path / "model", assistant)
    with pytest.raises(ModelFormatError, match="class token among the image tokens"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_tiles_are_rejected(tmp_path: Path, vision_folder: Path, language_folder: Path) -> None:
    """llama.cpp orders tiles otherwise, so nothing is written."""
    assistant = assemble(
        vision_folder, language_folder, aspect="anyres", pinpoints=((6, 12),), seed=3
    )
    save_model_folder(tmp_path / "model", assistant)
    with pytest.raises(ModelFormatError, match="'anyres'"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_an_unknown_language_model_is_rejected_by_name(
    tmp_path: Path, vision_folder: Path, gpt2_folder: Path
) -> None:
    """The message names the model type, and nothing is written."""
    save_model_folder(tmp_path / "model", assemble(vision_folder, gpt2_folder, seed=3))
    with pytest.raises(ModelFormatError, match="'gpt2' cannot be exported"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_a_weight_beyond_the_range_of_fp16_is_rejected(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """The message names the weight and a type that can hold it, and nothing is left."""
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] = 1e5
    save_model_folder(tmp_path / "model", assistant)
    with pytest.raises(ModelFormatError, match=r"mm\.0\.weight holds 1e\+05.*--type f32"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress())


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path, assistant: LlavaBundle) -> None:
    """An export replaces an export, and nothing else."""
    save_model_folder(tmp_path / "model", assistant)
    for _ in range(2):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"'thesis\.tex'"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    with pytest.raises(ModelFormatError, match=r"model\.gguf is missing"):
        gguf_files(tmp_path / "model")


@pytest.mark.parametrize(
    "parts",
    [
        ({"text": "<__media__>"}, {"text": "what?"}),
        ({"text": "<__media_x7__>"}, {"text": "\nwhat?"}),
        ({"text": "what? "}, {"text": "<__media__>"}),
        "<__media__>what?",
        "<__media__>",
        "what? <b__>",
        ({"text": "what?"},),
    ],
)
def test_the_template_of_the_file_gives_calderas_prompt(
    assistant: LlavaBundle, parts: str | tuple[dict[str, str], ...]
) -> None:
    """For every form in which llama.cpp's programs pass an image, the prompt is the one of the training."""
    content = parts if isinstance(parts, str) else [{"type": "text", **part} for part in parts]
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    marker = next((name for name in ("<__media__>", "<__media_x7__>") if name in text), None)
    words = text.replace(marker or "\0", "").strip()
    user: tuple[str | ImageRef, ...] = (ImageRef("0.png"), f"\n{words}") if marker else (words,)
    turns = (Turn("user", user), Turn("assistant", ("yes",)), Turn("user", ("why?",)))
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    ]
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    written = sandbox.from_string(chat_template_of(assistant)).render(
        messages=messages, eos_token="", bos_token="", add_generation_prompt=True
    )
    tokenizer, image_id = assistant.tokenizer, assistant.model.image_token_id
    encoded = encode(find_template("vicuna_v1").render(Conversation("q", turns)), tokenizer)
    expected = encoded.with_image_tokens([1] * len(encoded.image_paths), image_id).ids
    assert tuple(tokenizer(written.replace(marker or "\0", "<image>")).input_ids) == expected


def test_the_context_is_limited_to_a_sliding_window(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """llama.cpp does not apply Mistral's sliding window, so the file has at most one window of positions."""
    _, out = exported(LANGUAGES["mistral"], "f16")
    field = gguf.GGUFReader(out / "model.gguf").get_field("llama.context_length")
    assert field is not None
    assert field.contents() == 128


def test_a_hidden_state_before_the_first_layer_is_rejected(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """llama.cpp has no name for hidden state 0."""
    metadata = assistant.card.model_copy(update={"vision_feature_layer": -4})
    assistant.model.vision.select_layer = -4
    save_model_folder(tmp_path / "model", replace(assistant, card=metadata))
    with pytest.raises(ModelFormatError, match="hidden state -4 of a tower with 3 layers"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
