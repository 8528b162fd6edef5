"""Exported GGUF files hold the folder's weights, under the names and in the order of llama.cpp, or are not written."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
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
from caldera.formats.gguf.tokenizer import tokenizer_metadata
from caldera.formats.gguf.vision_tower import ClassToken
from caldera.formats.gguf.writer import GgufDtype
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.progress import NoProgress
from caldera.templates.encoding import encode
from caldera.templates.template import find_template

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
"""Of Q8_0, as a share of the largest value among 32 neighbors."""


@pytest.fixture
def exported(
    tmp_path: Path, vision_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., tuple[Path, Path]]:
    """Return a function that makes a model folder around a language model, and exports it."""

    def export(
        config: PretrainedConfig, kind: GgufDtype, projector: str = "mlp2x_gelu"
    ) -> tuple[Path, Path]:
        torch.manual_seed(11)
        config.vocab_size = len(tokenizer)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if name.endswith("bias"):  # which a fresh model has at zero
                torch.nn.init.normal_(weight)
        model.save_pretrained(tmp_path / "language")
        tokenizer.save_pretrained(tmp_path / "language")
        made = assemble(vision_folder, tmp_path / "language", seed=3, projector=projector)
        save_model_folder(tmp_path / "model", made)
        write_gguf_files(tmp_path / "model", tmp_path / "out", kind, NoProgress())
        return tmp_path / "model", tmp_path / "out"

    return export


def tensors(file: Path) -> dict[str, np.ndarray]:
    """Return a file's tensors, freed of their quantization."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_language_model_read_back_gives_the_same_logits(
    exported: Callable[..., tuple[Path, Path]], name: str
) -> None:
    """Transformers' own reader of GGUF files, which undoes llama.cpp's order of rows, comes to the folder's logits."""
    folder, out = exported(LANGUAGES[name], "f32")
    read = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.tensor([[1, 5, 17, 3, 29, 40, 7]])
    with torch.no_grad():
        given = read(ids).logits
        wanted = load_model_folder(folder).model.language(ids).logits
    torch.testing.assert_close(given, wanted[..., : given.shape[-1]], atol=2e-4, rtol=0)


def test_f16_rounds_matrices_and_keeps_vectors(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """A matrix is the folder's, rounded to fp16; norms and biases are the folder's bit for bit."""
    folder, out = exported(LANGUAGES["qwen2"], "f16")
    state = load_model_folder(folder).model.language.state_dict()
    found = tensors(out / "model.gguf")
    down = state["model.layers.2.mlp.down_proj.weight"].numpy()
    assert np.array_equal(found["blk.2.ffn_down.weight"], down.astype(np.float16))
    assert not np.array_equal(found["blk.2.ffn_down.weight"], down)
    for theirs, ours in (
        ("attn_norm.weight", "input_layernorm.weight"),
        ("attn_k.bias", "self_attn.k_proj.bias"),
    ):
        assert np.array_equal(found[f"blk.1.{theirs}"], state[f"model.layers.1.{ours}"].numpy())


def test_q8_0_stays_within_half_a_step(exported: Callable[..., tuple[Path, Path]]) -> None:
    """No value is further off than half a step of its 32 neighbors, and rounding of their scale to fp16."""
    folder, out = exported(LANGUAGES["llama"], "q8_0")
    wanted = (
        load_model_folder(folder).model.language.state_dict()["model.embed_tokens.weight"].numpy()
    )
    found = tensors(out / "model.gguf")["token_embd.weight"]
    blocks = np.abs(wanted).reshape(-1, 32).max(axis=1, keepdims=True)
    off = np.abs(found - wanted).reshape(-1, 32)
    assert (off <= blocks * (STEP / 2 + 2**-10)).all()
    assert off.max() > 0


def test_rows_that_do_not_divide_become_f16(exported: Callable[..., tuple[Path, Path]]) -> None:
    """Q8_0 needs rows of whole blocks; a tower 10 wide has none."""
    _, out = exported(LANGUAGES["llama"], "q8_0")
    types = {
        each.name: each.tensor_type.name for each in gguf.GGUFReader(out / "mmproj.gguf").tensors
    }
    assert types["v.blk.0.attn_q.weight"] == "F16"
    assert types["mm.2.weight"] == "Q8_0"
    assert types["v.position_embd.weight"] == types["v.blk.0.ln1.bias"] == "F32"


@pytest.mark.parametrize("class_token", ["first", "last"])
def test_tower_and_projector_are_the_folders(
    tmp_path: Path, assistant: LlavaBundle, class_token: ClassToken
) -> None:
    """Layers up to the chosen one, and no more; positions in the order in which llama.cpp will add them."""
    save_model_folder(tmp_path / "model", assistant)
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress(), class_token)
    found = tensors(tmp_path / "out" / "mmproj.gguf")
    state = {
        name.removeprefix("vision_model."): weight.numpy()
        for name, weight in assistant.model.vision.tower.state_dict().items()
    }
    assert assistant.model.vision.tower.config.num_hidden_layers == 3
    assert {name.split(".")[2] for name in found if name.startswith("v.blk")} == {"0", "1"}
    assert not any("post" in name for name in found)
    for theirs, ours in {
        "v.class_embd": "embeddings.class_embedding",
        "v.patch_embd.weight": "embeddings.patch_embedding.weight",
        "v.pre_ln.bias": "pre_layrnorm.bias",
        "v.blk.1.attn_out.weight": "encoder.layers.1.self_attn.out_proj.weight",
        "v.blk.1.ffn_up.weight": "encoder.layers.1.mlp.fc1.weight",
        "v.blk.1.ffn_down.bias": "encoder.layers.1.mlp.fc2.bias",
    }.items():
        assert np.array_equal(found[theirs], state[ours]), theirs
    positions = state["embeddings.position_embedding.weight"]
    moved = np.roll(positions, -1, axis=0) if class_token == "last" else positions
    assert np.array_equal(found["v.position_embd.weight"], moved)
    linear = assistant.model.projector.layers
    assert np.array_equal(found["mm.0.weight"], linear[0].weight.detach().numpy())
    assert np.array_equal(found["mm.2.bias"], linear[1].bias.detach().numpy())
    reader = gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf")
    facts = {
        name: reader.get_field(f"clip.vision.{name}") for name in ("block_count", "feature_layer")
    }
    assert {name: field.contents() for name, field in facts.items() if field} == {
        "block_count": 2,
        "feature_layer": [2],
    }


def test_a_linear_projector_becomes_two_layers_that_give_the_same(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """The two layers and GELU between them, in both of its forms, are v1's one layer."""
    folder, out = exported(LANGUAGES["llama"], "f32", projector="linear")
    layer = load_model_folder(folder).model.projector
    found = {
        name: torch.from_numpy(value.copy()) for name, value in tensors(out / "mmproj.gguf").items()
    }
    patches = 5 * torch.randn(7, layer.layers[0].in_features)
    for form in ("none", "tanh"):
        inner = torch.nn.functional.gelu(
            patches @ found["mm.0.weight"].T + found["mm.0.bias"], approximate=form
        )
        given = inner @ found["mm.2.weight"].T + found["mm.2.bias"]
        torch.testing.assert_close(given, layer(patches), atol=1e-5, rtol=1e-5)


def test_a_siglip_tower_has_no_class_token(tmp_path: Path, language_folder: Path) -> None:
    """Its positions stay as they are, its patches have a bias, and its activation is asked for."""
    torch.manual_seed(7)
    shape = SiglipVisionConfig(
        hidden_size=10, intermediate_size=14, num_hidden_layers=3, num_attention_heads=2, image_size=6, patch_size=2
    )  # fmt: skip
    SiglipVisionModel(shape).save_pretrained(tmp_path / "vision")
    SiglipImageProcessorPil(size={"height": 6, "width": 6}).save_pretrained(tmp_path / "vision")
    save_model_folder(tmp_path / "model", assemble(tmp_path / "vision", language_folder, seed=3))
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress())
    found = tensors(tmp_path / "out" / "mmproj.gguf")
    assert "v.class_embd" not in found
    assert found["v.position_embd.weight"].shape == (9, 10)
    assert found["v.patch_embd.bias"].shape == (10,)
    assert gguf.GGUFReader(tmp_path / "out" / "mmproj.gguf").get_field("clip.use_gelu")


def test_a_class_token_among_the_image_tokens_is_refused(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """llama.cpp drops it; nothing is written."""
    made = assemble(vision_folder, language_folder, seed=3, select="cls_patch")
    save_model_folder(tmp_path / "model", made)
    with pytest.raises(ModelFormatError, match="class token among the image tokens"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_tiles_are_refused(tmp_path: Path, vision_folder: Path, language_folder: Path) -> None:
    """llama.cpp orders tiles otherwise; nothing is written."""
    made = assemble(vision_folder, language_folder, aspect="anyres", pinpoints=((6, 12),), seed=3)
    save_model_folder(tmp_path / "model", made)
    with pytest.raises(ModelFormatError, match="'anyres'"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_an_unknown_language_model_is_refused_by_name(
    tmp_path: Path, vision_folder: Path, gpt2_folder: Path
) -> None:
    """Nothing is written."""
    save_model_folder(tmp_path / "model", assemble(vision_folder, gpt2_folder, seed=3))
    with pytest.raises(ModelFormatError, match="'gpt2' cannot be exported"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert not (tmp_path / "out").exists()


def test_a_weight_that_fp16_cannot_hold_is_refused(tmp_path: Path, assistant: LlavaBundle) -> None:
    """The message names it and the type that can; nothing is left behind."""
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] = 1e5
    save_model_folder(tmp_path / "model", assistant)
    with pytest.raises(ModelFormatError, match=r"mm\.0\.weight holds 1e\+05.*--type f32"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
    assert [each.name for each in tmp_path.iterdir()] == ["model"]
    write_gguf_files(tmp_path / "model", tmp_path / "out", "f32", NoProgress())


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path, assistant: LlavaBundle) -> None:
    """An export takes the place of an export, and of nothing else."""
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
def test_the_files_template_writes_what_caldera_writes(
    assistant: LlavaBundle, parts: str | tuple[dict[str, str], ...]
) -> None:
    """However a program of llama.cpp hands an image over, the prompt is the one that the model was trained on."""
    content = parts if isinstance(parts, str) else [{"type": "text", **part} for part in parts]
    whole = content if isinstance(content, str) else "".join(part["text"] for part in content)
    mark = next((word for word in ("<__media__>", "<__media_x7__>") if word in whole), None)
    words = whole.replace(mark or "\0", "").strip()
    said: tuple[str | ImageRef, ...] = (ImageRef("0.png"), f"\n{words}") if mark else (words,)
    first = (Turn("user", said), Turn("assistant", ("yes",)), Turn("user", ("why?",)))
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "why?"}]},
    ]
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    written = sandbox.from_string(chat_template_of(assistant)).render(
        messages=messages, eos_token="", bos_token="", add_generation_prompt=True
    )
    tokenizer, slot = assistant.tokenizer, assistant.model.image_token_id
    ours = encode(find_template("vicuna_v1").render(Conversation("q", first)), tokenizer)
    wanted = ours.with_image_tokens([1] * len(ours.image_paths), slot).ids
    assert tuple(tokenizer(written.replace(mark or "\0", "<image>")).input_ids) == wanted


def words_of(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap a tokenizer."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def test_sentencepiece_scores_follow_the_merges() -> None:
    """A piece that is merged earlier has the higher score; bytes, unknown and special tokens have their kinds."""
    vocabulary = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "▁a", "▁ab"]
    ids = {word: number for number, word in enumerate(vocabulary)}
    model = models.BPE(
        ids,
        [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    bpe = Tokenizer(model)
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.ByteFallback()
    settings = tokenizer_metadata(words_of(bpe), 12)
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores")
    words, values = (list(settings[key]) for key in keys)  # type: ignore[arg-type]
    scores = {str(word): float(str(value)) for word, value in zip(words, values, strict=True)}
    assert settings["tokenizer.ggml.model"] == "llama"
    assert settings["tokenizer.ggml.add_space_prefix"] is True
    assert scores["ab"] > scores["▁a"] > scores["▁ab"] > scores["a"]
    assert settings["tokenizer.ggml.token_type"] == [2, 1, 3, 6, 1, 1, 1, 1, 1, 1, 5, 5]


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), r"\['ByteLevel'\]"),
        (pre_tokenizers.Whitespace(), r"\['Whitespace'\]"),
        (pre_tokenizers.Split(Regex("x+"), "isolated"), r"\['x\+'\]"),
    ],
)
def test_a_tokenizer_that_cuts_otherwise_is_refused(
    cut: pre_tokenizers.PreTokenizer, said: str
) -> None:
    """The message says how it cuts, and what is known."""
    bpe = Tokenizer(models.BPE({"a": 0, "<unk>": 1, "</s>": 2}, []))
    bpe.pre_tokenizer = cut
    with pytest.raises(ModelFormatError, match=f"{said}.*gpt-2"):
        tokenizer_metadata(words_of(bpe), 5)


def test_more_tokens_than_embeddings_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """A token without a row has no embedding to export."""
    with pytest.raises(ModelFormatError, match="only 300 embeddings"):
        tokenizer_metadata(tokenizer, 300)


def test_a_context_ends_where_a_window_would_begin(
    exported: Callable[..., tuple[Path, Path]],
) -> None:
    """llama.cpp does not apply Mistral's sliding window, so a file states no more positions than one window holds."""
    _, out = exported(LANGUAGES["mistral"], "f16")
    field = gguf.GGUFReader(out / "model.gguf").get_field("llama.context_length")
    assert field is not None
    assert field.contents() == 128


def test_hidden_states_that_are_no_layers_output_are_refused(
    tmp_path: Path, assistant: LlavaBundle
) -> None:
    """State 0 stands before the first layer; llama.cpp has no name for it."""
    card = assistant.card.model_copy(update={"select_layer": -4})
    assistant.model.vision.select_layer = -4
    save_model_folder(tmp_path / "model", replace(assistant, card=card))
    with pytest.raises(ModelFormatError, match="hidden state -4 of a vision tower with 3 layers"):
        write_gguf_files(tmp_path / "model", tmp_path / "out", "f16", NoProgress())
