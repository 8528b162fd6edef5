"""The language model's training at tiny size: answers are marked to the token, rows are full, scores are counted."""

import random
from collections.abc import Iterator
from itertools import chain, count, pairwise

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.language_pretraining import (
    END,
    START,
    LanguagePretraining,
    PackedReader,
    _config,
    _losses,
    _question_type,
    _rates,
    as_tensor,
    embed,
    encode,
    evaluate_answers,
    train_tokenizer,
)
from backbones.optimization import autocast_matmul
from backbones.text_corpus import CorpusSegment, DescriptionMix, Document, bags_of_words
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS, Scene, sample_scene


def document(number: int) -> Document:
    """Return a dialogue of a length of its own."""
    return [
        CorpusSegment(f"USER: how many{' dog' * (number % 5)} ASSISTANT:"),
        CorpusSegment(f" {number} two three</s>", answer=True),
        CorpusSegment("USER: where? ASSISTANT:"),
        CorpusSegment(" left</s>", answer=True),
    ]


def test_a_document_is_encoded_piece_by_piece_with_its_answers_marked(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A start mark, then each piece's tokens; marks change where pieces do, and end marks are one token."""
    bags, answers = encode(document(3), tokenizer)

    ids = [bag[0] for bag in bags]
    assert all(len(bag) == 1 for bag in bags)
    assert len(ids) == len(answers)
    assert ids[0] == tokenizer.bos_token_id
    assert not answers[0]
    assert tokenizer.decode(ids[1:]) == "".join(piece.text for piece in document(3))
    learned = [token for token, known in zip(ids, answers, strict=True) if known]
    assert tokenizer.decode(learned) == " 3 two three</s> left</s>"
    assert learned.count(tokenizer.eos_token_id) == 2
    assert ids.count(tokenizer.bos_token_id) == 1


def test_rows_are_documents_end_to_end_cut_to_one_length(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Each row begins with a document's start, holds one token more than its length, and no padding."""
    reader = PackedReader((document(number) for number in count()), tokenizer)
    read = [encode(document(number), tokenizer) for number in range(64)]
    encoded = [([bag[0] for bag in bags], answers) for bags, answers in read]
    whole = [list(zip(*each, strict=True)) for each in encoded]

    ids, answers = reader.rows(5, 61)

    assert ids.shape == (5, 62, 5)
    ids = ids[:, :, 0]
    assert ids.shape == answers.shape == (5, 62)
    assert answers.dtype == torch.bool
    for row in (
        list(zip(*each, strict=True)) for each in zip(ids.tolist(), answers.tolist(), strict=True)
    ):
        starts = [at for at, (token, _) in enumerate(row) if token == tokenizer.bos_token_id]
        assert starts[0] == 0
        assert len(starts) > 1
        assert all(row[begin:end] in whole for begin, end in pairwise(starts))
        cut = row[starts[-1] :]
        assert any(cut == each[: len(cut)] for each in whole)


def test_no_document_is_read_twice(tokenizer: PreTrainedTokenizerFast) -> None:
    """Each row goes on in the stream where the one before ended."""
    texts = (f"{number} {'dog ' * 3}" for number in count(100))
    reader = PackedReader(([CorpusSegment(text, answer=True)] for text in texts), tokenizer)
    rows = chain(*(reader.rows(3, 41)[0][:, :, 0].tolist() for _ in range(4)))
    numbers = [
        number
        for row in rows
        for number in str(tokenizer.decode(row, skip_special_tokens=True)).split()
        if number.isdigit() and len(number) == 3
    ]
    assert len(numbers) > 20
    assert len(set(numbers)) == len(numbers)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """Sixty scenes by the paths of their images."""
    return {
        f"{index}.jpg": sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        for index in range(60)
    }


@pytest.fixture(scope="module")
def trained(scenes: dict[str, Scene]) -> PreTrainedTokenizerFast:
    """A tokenizer trained on captions and bags."""

    def texts() -> Iterator[str]:
        chance = random.Random(1)
        for scene in scenes.values():
            yield " ".join(captions_of(scene))
            yield from ("".join(bags_of_words(scene, chance)) for _ in range(3))
        yield from (f" {word}" * 20 for word in (*OBJECT_KINDS, *COLORS, *BACKGROUNDS))

    return train_tokenizer(texts(), 700)


def test_every_word_of_a_bag_is_one_token(
    trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """So that none is cut off, whatever a cell says."""
    for scene in scenes.values():
        for told in bags_of_words(scene, random.Random(2)):
            assert len(trained.tokenize(told)) == len(told.split())
    assert len(trained) <= 700


def test_the_tokenizer_is_made_like_llamas(trained: PreTrainedTokenizerFast) -> None:
    """A start mark before any text, any letters come back, and padding has a token of its own."""
    text = "A dög, 7 cats\n 🐕 <image>"
    ids = trained(text).input_ids
    assert ids[0] == trained.bos_token_id == trained.convert_tokens_to_ids(START)
    assert trained.decode(ids, skip_special_tokens=True) == text
    assert trained.eos_token_id == trained.convert_tokens_to_ids(END)
    special = {trained.unk_token_id, trained.bos_token_id, trained.eos_token_id}
    assert len({*special, trained.pad_token_id}) == 4


@pytest.fixture
def model(trained: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A tiny LLaMA for the trained tokenizer."""
    torch.manual_seed(1)
    settings = LanguagePretraining(width=22, inner_width=26, layers=2, heads=1)
    return LlamaForCausalLM(_config(trained, settings))


def test_the_shape_is_what_the_settings_say(model: LlamaForCausalLM) -> None:
    """With room for long dialogues, and the special tokens of its tokenizer."""
    config = model.config
    assert isinstance(config, LlamaConfig)
    assert (config.hidden_size, config.intermediate_size) == (22, 26)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 1)
    assert config.max_position_embeddings >= 2048
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert model.model.embed_tokens.weight is not model.lm_head.weight


def test_the_loss_weighs_answers_fully_and_prompts_a_little(model: LlamaForCausalLM) -> None:
    """It is the weighted mean over next tokens, worked out one by one; the second number is answers alone."""
    chance = torch.Generator().manual_seed(4)
    ids = torch.randint(4, 300, (3, 12), generator=chance)
    answers = torch.rand(3, 12, generator=chance) < 0.4

    bags = torch.full((3, 12, 5), -1)
    bags[:, :, 0] = ids

    loss, answer_loss = _losses(model, bags, answers, 0.25)

    with torch.no_grad(), autocast_matmul():
        logits = model(input_ids=ids[:, :-1]).logits
    total = weight_sum = answer_sum = 0.0
    for row in range(3):
        for at in range(11):
            scores = logits[row, at].float()
            nats = float(scores.logsumexp(0) - scores[ids[row, at + 1]])
            weight = 1.0 if answers[row, at + 1] else 0.25
            total, weight_sum = total + weight * nats, weight_sum + weight
            answer_sum += nats * bool(answers[row, at + 1])
    assert float(loss.detach()) == pytest.approx(total / weight_sum, rel=1e-3)
    assert answer_loss == pytest.approx(answer_sum / int(answers[:, 1:].sum()), rel=1e-3)
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_bag_is_one_position_that_says_all_its_words(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast
) -> None:
    """Its input is the sum of its words', as long as a word, and it is never a target."""
    pieces = [
        CorpusSegment("", cells=(" dog", " car red top left")),
        CorpusSegment(" dog", answer=True),
    ]

    bags, answers = encode(pieces, trained)

    assert [len(bag) for bag in bags] == [1, 1, 4, 1]
    assert answers == [False, False, False, True]
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    table = embeddings.weight.detach()
    embedded = embed(model, as_tensor(bags).unsqueeze(0))[0]
    torch.testing.assert_close(embedded[1], table[bags[1][0]])
    torch.testing.assert_close(embedded[2], table[list(bags[2])].sum(dim=0) / 2)
    ids, marks = as_tensor(bags).unsqueeze(0), torch.tensor([answers])
    with torch.no_grad():
        logits = model(inputs_embeds=embed(model, ids[:, :-1])).logits[0].float()
        loss, _ = _losses(model, ids, marks, 0.25)
    dog = bags[1][0]
    first = float(logits[0].logsumexp(0) - logits[0, dog])
    last = float(logits[2].logsumexp(0) - logits[2, dog])
    assert float(loss) == pytest.approx((0.25 * first + last) / 1.25, rel=1e-3)


def test_blur_moves_bags_and_leaves_words(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast
) -> None:
    """Bags of several words stray, more with more blur and each time anew; single words stay as they are."""
    pieces = [
        CorpusSegment("", cells=(" dog", " car red top left")),
        CorpusSegment(" dog", answer=True),
    ]
    ids = as_tensor(encode(pieces, trained)[0]).unsqueeze(0)
    exact = embed(model, ids)[0]
    little, much, again = (embed(model, ids, blur)[0] for blur in (0.1, 5.0, 5.0))
    for moved in (little, much):
        torch.testing.assert_close(moved[[0, 1, 3]], exact[[0, 1, 3]])
    strays = [float((moved[2] - exact[2]).detach().norm()) for moved in (little, much)]
    assert 0 < strays[0] < strays[1]
    assert not torch.equal(much[2], again[2])


def test_the_rate_rises_and_falls_once_for_each_stretch() -> None:
    """A phase that starts anew begins a stretch; others go on in theirs."""
    settings = LanguagePretraining()
    rates = _rates(settings)
    assert len(rates) == sum(phase.steps for phase in settings.phases)
    rises = sum(rates[at] > 3 * rates[at - 1] for at in range(1, len(rates)))
    assert rises == sum(phase.restart_schedule for phase in settings.phases) > 0
    assert max(rates) <= settings.learning_rate
    assert rates[-1] < 1e-3 * settings.learning_rate


def about(path: str, kind: str, *answers: str) -> Conversation:
    """Return a dialogue of a kind about one scene."""
    turns = []
    for number, answer in enumerate(answers):
        asked = (ImageRef(path), "\nWhat?") if number == 0 else ("What?",)
        turns += [Turn("user", asked), Turn("assistant", (answer,))]
    return Conversation(f"{path}-{kind}", tuple(turns))


def test_a_model_that_cannot_answer_scores_nothing(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """Every kind that was asked is scored, and no other."""
    asked = [about("1.jpg", "vqa", "dog", "two"), about("2.jpg", "context", "neither")]
    scores = evaluate_answers(model, trained, asked, scenes, DescriptionMix(bags=1.0))
    assert scores == {"vqa": 0.0, "context": 0.0, "other": 0.0}
    assert model.training


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("How many dogs do you see?", "count"),
        ("What colour is the car?", "colour"),
        ("Where is the dog?", "position"),
        ("In which part of the picture is the dog?", "position"),
        ("Where was this picture taken?", "other"),
        ("Is the dog to the left or to the right of the car?", "relation"),
        ("Is the dog below the car?", "relation"),
        ("Do A and C show the same kind of place?", "same place"),
        ("Is the setting of B also that of C?", "same place"),
        ("What is the setting?", "other"),
    ],
)
def test_the_probe_tells_questions_apart(question: str, subject: str) -> None:
    """By the last question alone, whatever was asked before."""
    assert _question_type(f"USER: How many cats? ASSISTANT: two</s>USER: {question}") == subject


def test_an_answer_is_right_with_all_its_tokens_and_its_end_mark(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """A model that says 'dog' and stops is right where just that is the answer."""
    opening, dog = (
        trained(text, add_special_tokens=False).input_ids[-1] for text in (" ASSISTANT:", " dog")
    )
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():  # without layers, scores are products of embeddings and head
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        embedding[opening, 0] = head[dog, 0] = 1  # 'dog' is likeliest after this
        embedding[dog, 1] = head[trained.eos_token_id, 1] = 1  # and the end after 'dog'

    asked = [
        about("1.jpg", "vqa", "dog", "two", "dog"),
        about("2.jpg", "context", "dog dog"),
        about("3.jpg", "context", "dog"),
    ]
    scores = evaluate_answers(model, trained, asked, scenes, DescriptionMix(bags=1.0))
    assert scores == {"vqa": 0.667, "context": 0.5, "other": 0.6}
