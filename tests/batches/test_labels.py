"""The label law: what is learned, decoded, spells exactly the assistant's turns and their end marks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from caldera.batches.labels import IGNORED, SLOT, Encoded, encode, start_ids
from caldera.batches.templates import TEMPLATES, Mark, Slot, Text, find_template, plain, vicuna_v1
from caldera.conversation import Conversation, Picture, Turn
from caldera.errors import RecordError, UnknownNameError

WORDS = "a the dog cat is on left yes no what picture USER: ASSISTANT: A chat between a curious user and assistant."

LOW_LINE = "\u2581"
"""What SentencePiece writes for a space; it cannot tell the two apart."""

TRAPS = [
    "</s>",
    "<s>",
    "<image>",
    "<unk>",
    "USER:",
    " ASSISTANT:",
    "\n",
    "é",
    "🐕",
    "שלום",
    " ",
    "a",
]


@pytest.fixture(scope="session")
def metaspace() -> PreTrainedTokenizerFast:
    """A tokenizer as LLaMA's own: low lines for spaces, one more before a text, bytes for unknown characters."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS] * 3, trainer)
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(
        [decoders.Replace(LOW_LINE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    assert made.tokenize("cat") == [f"{LOW_LINE}cat"] == made.tokenize(" cat")
    assert made.tokenize("é")[-2:] == ["<0xC3>", "<0xA9>"]
    return made


@pytest.fixture(scope="session", params=["bytes", "low lines"])
def any_tokenizer(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerFast,
    metaspace: PreTrainedTokenizerFast,
) -> PreTrainedTokenizerFast:
    """One of either kind."""
    return tokenizer if request.param == "bytes" else metaspace


pieces = st.lists(
    st.sampled_from(TRAPS)
    | st.text(st.characters(codec="utf-8", exclude_characters=LOW_LINE), max_size=8),
    min_size=1,
    max_size=5,
).map("".join)
said = pieces.filter(lambda text: bool(text.strip()))


def dialogue(exchanges: list[tuple[int, str, str]]) -> Conversation:
    """Return a conversation of (pictures, question, answer)."""
    turns: list[Turn] = []
    for count, question, answer in exchanges:
        shown = tuple(Picture(f"{len(turns)}-{number}.png") for number in range(count))
        turns += [Turn("user", (*shown, question)), Turn("assistant", (answer,))]
    return Conversation("c", tuple(turns))


def learned_text(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> str:
    """Decode what is learned."""
    return str(tokenizer.decode([label for label in encoded.labels if label != IGNORED]))


@given(exchanges=st.lists(st.tuples(st.integers(0, 2), said, said), min_size=1, max_size=3))
def test_vicuna_learns_the_answers_and_their_ends(
    any_tokenizer: PreTrainedTokenizerFast, exchanges: list[tuple[int, str, str]]
) -> None:
    """Whatever the turns say, only answers are learned, and every picture has its slot, in order."""
    conversation = dialogue(exchanges)

    encoded = encode(vicuna_v1(conversation), any_tokenizer)

    assert learned_text(encoded, any_tokenizer) == "".join(
        f" {answer}</s>" for *_, answer in exchanges
    )
    assert encoded.picture_paths == conversation.pictures
    assert encoded.ids.count(SLOT) == len(conversation.pictures)
    assert encoded.ids.count(any_tokenizer.eos_token_id) == len(exchanges)
    assert encoded.ids.count(any_tokenizer.bos_token_id) == 1


@given(caption=said)
def test_plain_learns_the_caption_and_its_newline(
    any_tokenizer: PreTrainedTokenizerFast, caption: str
) -> None:
    """Stage 1 sees the start mark, the picture and the caption; the question is gone.

    SentencePiece puts a space before a text that has none.
    """
    encoded = encode(plain(dialogue([(1, "what is this?", caption)])), any_tokenizer)

    assert encoded.ids[:2] == (any_tokenizer.bos_token_id, SLOT)
    assert encoded.labels[:2] == (IGNORED, IGNORED)
    assert all(label != IGNORED for label in encoded.labels[2:])
    spelt = learned_text(encoded, any_tokenizer)
    assert spelt.removeprefix(" ") == f"{caption}\n".removeprefix(" ")


@given(question=said, answer=said)
def test_a_prompt_is_the_beginning_of_its_training_text(
    any_tokenizer: PreTrainedTokenizerFast, question: str, answer: str
) -> None:
    """For every template, the ids before the answer are the same whether or not the answer follows."""
    asked = Conversation("c", (Turn("user", (Picture("a.png"), question)),))
    for template in TEMPLATES.values():
        prompt = encode(template.render(asked), any_tokenizer).ids
        whole = encode(template.render(dialogue([(1, question, answer)])), any_tokenizer)
        assert whole.ids[: len(prompt)] == prompt
        assert whole.labels[: len(prompt)] == (IGNORED,) * len(prompt)
        assert IGNORED not in whole.labels[len(prompt) :]


def test_vicuna_writes_what_the_original_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    """Two rounds, picture moved to the front of its turn, no space before the second USER."""
    conversation = dialogue([(0, "x", "1"), (0, "y", "2")])
    with_picture = Conversation(
        "c", (Turn("user", ("what?\n", Picture("a.png"))), *conversation.turns[1:])
    )
    texts = [
        span.text if isinstance(span, Text) else type(span).__name__
        for span in vicuna_v1(with_picture)
    ]
    assert "".join(texts[1:]) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Slot\nwhat? ASSISTANT: 1MarkUSER: y ASSISTANT: 2"
        "Mark"
    )


def test_a_picture_without_words_stands_alone() -> None:
    """As in the original, which strips a turn once more after moving the picture: no line ends behind it."""
    for parts in ((Picture("a.png"),), (Picture("a.png"), "\n"), (" ", Picture("a.png"), " ")):
        asked = Conversation("c", (Turn("user", parts),))
        assert [*vicuna_v1(asked)][2:] == [
            Text("USER: "),
            Slot(Picture("a.png")),
            Text(" ASSISTANT:"),
        ]
        assert [*plain(asked)] == [Mark("start"), Slot(Picture("a.png"))]


def test_image_tokens_take_the_slots_place(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each slot becomes as many image tokens as its picture has, none of them learned."""
    encoded = encode(vicuna_v1(dialogue([(2, "a", "b")])), tokenizer)

    grown = encoded.with_image_tokens([3, 5], image_token_id=999)

    assert grown.ids.count(999) == 8
    assert len(grown.ids) == len(grown.labels) == len(encoded.ids) + 6
    assert 999 not in grown.labels
    with pytest.raises(ValueError, match="2 slots but 1 counts"):
        encoded.with_image_tokens([3], 999)


def test_a_tokenizer_without_a_start_mark_gets_none(tokenizer: PreTrainedTokenizerFast) -> None:
    """The start mark is used only where the tokenizer itself uses it."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["post_processor"] = None
    bare = Tokenizer.from_str(json.dumps(content))
    without = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")

    assert start_ids(tokenizer) == [tokenizer.bos_token_id]
    assert start_ids(without) == []


def test_plain_takes_only_captions() -> None:
    """Dialogues and texts without a picture are sent to the other template."""
    for conversation in (dialogue([(1, "a", "b"), (0, "c", "d")]), dialogue([(0, "a", "b")])):
        with pytest.raises(RecordError, match="use 'vicuna_v1' for dialogues"):
            list(plain(conversation))


def test_templates_are_found_by_exact_name() -> None:
    """A typo is answered with the nearest name."""
    assert find_template("plain").name == "plain"
    with pytest.raises(UnknownNameError, match="did you mean 'vicuna_v1'"):
        find_template("vicunav1")
