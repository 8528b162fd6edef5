"""An assembled assistant has every special token of its template, and keeps the existing tokens and rows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.formats.assemble import add_special_tokens, assemble
from caldera.formats.model_folder import load_model_folder, save_model_folder
from caldera.templates.encoding import IGNORE_INDEX, encode
from caldera.templates.registry import TEMPLATES, find_template
from caldera.templates.tokenization import context_tokenizer
from tests.real_tokenizers import TOKENIZERS


def tables(language: PreTrainedModel) -> list[Tensor]:
    """Return a language model's input and output embedding tables."""
    layers = (language.get_input_embeddings(), language.get_output_embeddings())
    return [layer.get_parameter("weight").data for layer in layers]


@pytest.mark.parametrize("name", TEMPLATES)
def test_towers_are_joined_for_every_template(
    tmp_path: Path, vision_folder: Path, language_folder: Path, name: str
) -> None:
    """A conversation can be encoded at once, and after saving and loading; generation ends at the template's end."""
    template = find_template(name)
    conversation = Conversation(
        "c", (Turn("user", (ImageRef("a.png"), "what?")), Turn("assistant", ("a dog",)))
    )
    assembled = assemble(vision_folder, language_folder, template=name)
    save_model_folder(tmp_path / "m", assembled)

    loaded = load_model_folder(tmp_path / "m")

    encoded = encode(template.render(conversation), loaded.tokenizer)
    assert encoded == encode(template.render(conversation), assembled.tokenizer)
    supervised = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert (
        str(loaded.tokenizer.decode(supervised)).strip() == f"a dog{template.answer_suffix}".strip()
    )
    assert max(encoded.ids) < len(loaded.model.embedding_weight)
    ends = GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id
    template_ends = [
        loaded.tokenizer.convert_tokens_to_ids(token) for token in [template.end_token] if token
    ]
    assert ends == [loaded.tokenizer.eos_token_id, *template_ends]


def test_no_file_names_the_users_folders(
    tmp_path: Path, vision_folder: Path, language_folder: Path
) -> None:
    """Transformers keeps the folder that a config was loaded from; a published model must not tell it."""
    save_model_folder(tmp_path / "m", assemble(vision_folder, language_folder))
    files = [file for file in (tmp_path / "m").iterdir() if file.suffix != ".safetensors"]
    assert len(files) >= 7
    for folder in (vision_folder, language_folder):
        assert not [file.name for file in files if str(folder) in file.read_text()]


def test_new_rows_are_the_mean_of_the_old(vision_folder: Path, language_folder: Path) -> None:
    """New rows are the mean in both tables, also in spare rows; the image token keeps its id."""
    before = AutoModelForCausalLM.from_pretrained(language_folder)
    plain = assemble(vision_folder, language_folder, template="plain")
    joined = assemble(vision_folder, language_folder, template="llama_3")
    size = len(AutoTokenizer.from_pretrained(language_folder))

    assert joined.model.image_token_id == plain.model.image_token_id == size
    assert len(joined.tokenizer) == len(plain.tokenizer) + 3
    for old, new in zip(tables(before), tables(joined.model.language), strict=True):
        assert torch.equal(new[:size], old)
        torch.testing.assert_close(new[size:], old.mean(dim=0).expand_as(new[size:]))


def test_tokens_are_added_to_a_table_with_room_to_spare(
    vision_folder: Path, language_folder: Path
) -> None:
    """Only the new tokens' rows are written; all others are unchanged, and a second call changes nothing."""
    assistant = assemble(vision_folder, language_folder, template="plain")
    table, _ = tables(assistant.model.language)
    size = len(assistant.tokenizer)
    assert len(table) > size + 3
    table += torch.randn(table.shape, generator=torch.Generator().manual_seed(7))
    old = table.clone()

    for _ in range(2):
        add_special_tokens(assistant.tokenizer, assistant.model.language, find_template("llama_3"))

        table, _ = tables(assistant.model.language)
        assert torch.equal(table[:size], old[:size])
        assert torch.equal(table[size + 3 :], old[size + 3 :])
        torch.testing.assert_close(table[size : size + 3], old[:size].mean(dim=0).expand(3, -1))


def test_an_existing_special_token_is_unchanged() -> None:
    """Its id and its flags, such as stripping white space, stay those of the language model."""
    tokenizer = TOKENIZERS["phi-3"]()
    key = context_tokenizer(tokenizer).special["<|assistant|>"]
    shape = LlamaConfig(
        vocab_size=len(tokenizer) + 1,
        hidden_size=2,
        intermediate_size=3,
        num_hidden_layers=1,
        num_attention_heads=1,
    )

    add_special_tokens(tokenizer, LlamaForCausalLM(shape), find_template("phi"))

    after = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    assert after[key].content == "<|assistant|>"
    assert after[key].rstrip


def test_a_vocabulary_grows_no_more_than_asked(vision_folder: Path, language_folder: Path) -> None:
    """With a multiple of 1 the tables have a row for each token and no other."""
    assistant = assemble(vision_folder, language_folder, vocab_multiple=1)
    assert len(assistant.model.embedding_weight) == len(assistant.tokenizer)
