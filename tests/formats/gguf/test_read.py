"""GGUF files are converted to folders in transformers' format."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from caldera.errors import ModelFormatError
from caldera.formats.assemble import assemble
from caldera.formats.gguf.read import convert_gguf
from caldera.recipes.towers import resolve_tower

HEADS = 2
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
"""Names of weights in transformers, and in GGUF."""


def interleaved(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Order the rows of a query or key matrix as llama.cpp does: rotary pairs as neighbors instead of halves."""
    rows, columns = weight.shape
    halves = weight.reshape(HEADS, 2, rows // HEADS // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def write_gguf(file: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a model as llama.cpp's converter does."""
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values)
        prefix, suffix = "", name
        if name.startswith("model.layers."):
            _, _, layer, suffix = name.split(".", 3)
            prefix = f"blk.{layer}."
        writer.add_tensor(prefix + NAMES[suffix], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def language(language_folder: Path) -> LlamaForCausalLM:
    """A random LLaMA."""
    return LlamaForCausalLM.from_pretrained(language_folder, dtype=torch.float32).eval()


def test_a_converted_model_is_the_same(
    tmp_path: Path, language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The folder gives the file's logits, up to the rounding to bf16."""
    write_gguf(tmp_path / "tiny.gguf", language, tokenizer)

    folder = resolve_tower(str(tmp_path / "tiny.gguf"), tmp_path / "towers")

    converted = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 17, 3, 29]])
    with torch.no_grad():
        actual, expected = converted(ids).logits, language(ids).logits
    assert float((actual - expected).abs().max()) < 0.03 * float(expected.abs().max())
    assert resolve_tower(str(tmp_path / "tiny.gguf"), tmp_path / "towers") == folder


def test_a_converted_model_is_assembled(
    tmp_path: Path,
    vision_folder: Path,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A vision tower and the converted folder make an assistant."""
    write_gguf(tmp_path / "tiny.gguf", language, tokenizer)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "language")

    joined = assemble(vision_folder, tmp_path / "language")

    assert joined.model.language.config.hidden_size == 12
    assert joined.tokenizer.convert_tokens_to_ids("<image>") == joined.model.image_token_id


def test_a_broken_file_is_rejected(tmp_path: Path) -> None:
    """One line names a broken file, and nothing is left."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(ModelFormatError, match=r"broken\.gguf cannot be read") as caught:
        convert_gguf(tmp_path / "broken.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [0, 4, -1])
@pytest.mark.parametrize("claimed", ["F64", "F16", "Q8_0", "Q4_0"])
def test_a_claim_of_another_bit_width_is_rejected(
    tmp_path: Path,
    language: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    number: int,
    claimed: str,
) -> None:
    """A tensor whose type needs more or fewer bytes than the file has for it is named, not misread (fault E7)."""
    write_gguf(tmp_path / "tiny.gguf", language, tokenizer)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf", "r+")
    tensor = reader.tensors[number]
    tensor.field.parts[4][0] = gguf.GGMLQuantizationType[claimed]
    del reader
    message = (
        rf"tiny\.gguf (claims that {tensor.name} has type {claimed}, \d+ bytes, but|cannot be read)"
    )
    with pytest.raises(ModelFormatError, match=message) as caught:
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
