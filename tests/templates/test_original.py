"""The variants of LLaVA's own code give the ids and labels that it gave, for every template and tokenizer."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerFast

from caldera.conversation import IMAGE_PLACEHOLDER, from_record
from caldera.formats.sentencepiece_model import read_model
from caldera.formats.tokenizer import load_tokenizer
from caldera.templates.encoding import IGNORE_INDEX, IMAGE_SLOT_ID, EncodedConversation, encode
from caldera.templates.registry import HUMAN_SYSTEM, find_template
from tests.conftest import THIRD_PARTY

FOLDER = THIRD_PARTY / "original_llava"

TEMPLATE_NAMES = {
    "v1": "vicuna_v1",
    "llava_v0": "v0",
    "next_qwen": "qwen",
    "next_llama3": "llama_3",
    "next_gemma": "gemma",
}
"""Names of caldera where the original has others."""

TOKENIZER_NAMES = {
    "legacy=True": "vicuna_legacy",
    "legacy=False": "vicuna_new",
    "fast": "vicuna_fast437",
    "neox": "tok_mpt",
    "mpt|1.5": "tok_mpt",
    "tok_qwen": "tok_qwen",
    "tok_llama3": "tok_llama3",
    "next_qwen": "tok_qwen",
    "next_llama3": "tok_llama3",
    "next_gemma": "tok_gemma",
}
"""Folder of the tokenizer by the end of the key."""

SPELLED = "a text spells a special token of the tokenizer; caldera keeps it as text"
MASKED = "the original counts the tokens wrong, warns, and masks the whole record"
STRIPPED = "transformers 4.31 removes white space before </s>; the original counts wrong then, and masks the record"
BY_CHANCE = (
    "the original counts wrong, but the sum fits by chance: it learns the line end before the first answer, and no end "
    "mark behind it"
)
MARKS = (
    "the original counts ### in the middle of a text as two pieces, as in LLaMA's vocabulary; in this one it is one, "
    "so its labels move by one token with each message"
)

SPELLING = {"c48", "c49"}
"""Conversations that spell </s> or <s>."""

PADDED = {"c27", "c42", "c51", "c54"}
"""Conversations with an answer that ends with white space."""


def reason(key: str, record: str, warning: str) -> str | None:
    """Return why a record differs from the original; None if its ids and labels must be equal."""
    head = key.split("|")[0]
    if record in SPELLING and not TOKENIZER_NAMES[tokenizer_key(key)].startswith("tok_"):
        return SPELLED
    if head == "llava_llama_2" and "|1.5|" in key:
        return STRIPPED  # before </s> the template itself has a space
    if record in PADDED and head in ("v1", "llava_v1") and "|1.5|" in key:
        return STRIPPED
    if head in ("v0", "llava_v0"):
        return MARKS
    if head in ("chatml_direct", "mpt") and warning:
        return MASKED
    if key == "chatml_direct|legacy=True":
        return BY_CHANCE
    return None


def tokenizer_key(key: str) -> str:
    """Return the end of a key that tells the tokenizer."""
    return key if key in TOKENIZER_NAMES else key.rpartition("|")[2]


@cache
def tokenizer(name: str, *tokens: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer and add special tokens."""
    loaded = load_tokenizer(FOLDER / "tokenizers" / name)
    loaded.add_special_tokens({"extra_special_tokens": list(tokens)})
    return loaded


def template_name(key: str) -> str:
    """Return the name of the variant that reproduces a key."""
    head = key.split("|")[0]
    version = "_4_31" if head in ("v1", "llava_v1") and "|1.5|" in key else ""
    return f"{TEMPLATE_NAMES.get(head, head)}_original{version}"


@cache
def records() -> dict[str, Any]:
    """Return the conversations by id."""
    if not FOLDER.is_dir():
        pytest.skip(f"no ids of LLaVA's own code at {FOLDER}; set CALDERA_THIRD_PARTY")
    return {record["id"]: record for record in read("conversations.json")}


def read(name: str) -> Any:  # noqa: ANN401 - JSON
    """Return the content of a file of the original's ids."""
    return json.loads((FOLDER / name).read_text("utf-8"))


def trained(key: str, record: str) -> EncodedConversation:
    """Encode a record as training does."""
    conversation = from_record(records()[record], record)
    spans = find_template(template_name(key)).for_training.render(conversation)
    tokens = ("<|im_start|>", "<|im_end|>") * key.startswith("chatml")
    return encode(spans, tokenizer(TOKENIZER_NAMES[tokenizer_key(key)], *tokens))


def test_ids_and_labels_are_the_originals() -> None:
    """They are equal but for the reasons above; each reason is met, and what differs is no more than it says."""
    records()
    met: set[str | None] = set()
    for key, targets in read("targets.json").items():
        for target in targets:
            encoded = trained(key, target["id"])
            why = reason(key, target["id"], target["warn"])
            met.add(why)
            same_ids = list(encoded.ids) == target["ids"]
            same = same_ids and list(encoded.labels) == target["labels"]
            assert same == (why is None), (key, target["id"], why)
            assert same_ids == (why not in (SPELLED, STRIPPED)), (key, target["id"], why)
            if why in (MASKED, STRIPPED):
                assert target["warn"]
                assert {*target["labels"]} == {IGNORE_INDEX}
    assert met == {None, SPELLED, MASKED, STRIPPED, BY_CHANCE, MARKS}


@pytest.mark.parametrize("head", ["v1", "llava_v1", "llava_llama_2", "plain", "llava_v0"])
def test_legacy_variants_reproduce_what_they_name(head: str) -> None:
    """With a legacy tokenizer, ids and labels are the original's if the template says so, and else of no record."""
    template = find_template(f"{TEMPLATE_NAMES.get(head, head)}_legacy")
    records()
    same = set()
    for target in read("targets.json")[f"{head}|legacy=True"]:
        if target["id"] not in SPELLING:
            spans = template.for_training.render(from_record(records()[target["id"]], target["id"]))
            encoded = encode(spans, tokenizer("vicuna_legacy"))
            ids, labels = list(encoded.ids), list(encoded.labels)
            same.add((ids, labels) == (target["ids"], target["labels"]) or bool(target["warn"]))
    assert same == {bool(template.reproduces)}


@pytest.mark.parametrize("name", ["vicuna_legacy", "vicuna_new", "vicuna_fast437"])
def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    """Whether it is legacy, which decides about the space behind special tokens, survives saving and loading."""
    template = find_template("vicuna_v1_original").for_training
    conversations = [from_record(record, name) for record in records().values()]
    before = [
        encode(template.render(conversation), tokenizer(name)).ids for conversation in conversations
    ]
    tokenizer(name).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert [
        encode(template.render(conversation), loaded).ids for conversation in conversations
    ] == before


def v0_labels(
    ids: list[int], messages: list[dict[str, str]], slow: SentencePieceProcessor
) -> list[int]:
    """Return labels as LLaVA v0's code counts them: from the tokens of each message by itself."""

    def count(text: str) -> int:
        chunks = text.split(IMAGE_PLACEHOLDER)
        return len(chunks) + sum(len(slow.encode(chunk)) for chunk in chunks)

    position = count(f"{HUMAN_SYSTEM}\n\n")
    labels = [IGNORE_INDEX] * position + ids[position:]
    for message in messages:
        name = {"human": "Human", "gpt": "Assistant"}[message["from"]]
        text = message["value"]
        if IMAGE_PLACEHOLDER in text:
            words = text.replace(IMAGE_PLACEHOLDER, "").strip()
            text = f"{IMAGE_PLACEHOLDER}\n{words}".strip()
        length = count(f"### {name}: {text}\n")
        if name == "Human":
            labels[position + 2 : position + length] = [
                IGNORE_INDEX for _ in ids[position + 2 : position + length]
            ]
        position += length
    return labels


def test_v0_has_the_originals_labels_with_llamas_marks(tmp_path: Path) -> None:
    """In LLaMA's vocabulary ### is two pieces within a text, and one at its beginning; the original relies on it.

    Its count gives the stored labels with the tokenizer that was used, and caldera's with one that has no piece ###.
    """
    folder = FOLDER / "tokenizers" / "vicuna_legacy"
    targets = {
        target["id"]: target for target in (records() and read("targets.json"))["v0|legacy=True"]
    }
    model = read_model(folder / "tokenizer.model")
    slow = SentencePieceProcessor(model_proto=model.SerializeToString())
    [mark] = [piece for piece in model.pieces if piece.piece == "###"]
    mark.piece = "xqzj"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    like_llama = SentencePieceProcessor(model_proto=model.SerializeToString())
    assert [len(like_llama.encode(text)) for text in ("###", "\n###")] == [1, 4]
    loaded = load_tokenizer(tmp_path)
    for name, record in records().items():
        if name in SPELLING:
            continue
        target = targets[name]
        assert v0_labels(target["ids"], record["conversations"], slow) == target["labels"]
        conversation = from_record(record, name)
        encoded = encode(find_template("v0_original").for_training.render(conversation), loaded)
        counted = v0_labels([*encoded.ids], record["conversations"], like_llama)
        assert list(encoded.labels) == counted
        assert (IMAGE_SLOT_ID in encoded.ids) == ("image" in record)
