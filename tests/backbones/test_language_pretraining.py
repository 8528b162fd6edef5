"""Tests of the language model's pretraining at tiny size."""

import json
import random
from collections.abc import Iterator
from itertools import chain, count, pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.corpus_reader import MAX_WORDS, DocumentEncoder, PackedReader, TokenRows, as_tensor
from backbones.language_pretraining import (
    END,
    START,
    _config,
    _learning_rates,
    _question_type,
    compute_losses,
    embed,
    evaluate_answers,
    open_start,
    train_tokenizer,
)
from backbones.language_settings import LanguagePretraining
from backbones.optimization import autocast_matmul
from backbones.patch_words import CENTER_TOKENS, WORDS
from backbones.references import NO_REFERENCE, ReferenceHead
from backbones.text_corpus import CorpusSegment, DescriptionMix, Document, bags_of_words
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, COLORS, OBJECT_KINDS, Scene, sample_scene


def document(number: int) -> Document:
    """Return a dialogue whose length depends on its number."""
    return [
        CorpusSegment(f"USER: how many{' dog' * (number % 5)} ASSISTANT:"),
        CorpusSegment(f" {number} two three</s>", answer=True),
        CorpusSegment("USER: where? ASSISTANT:"),
        CorpusSegment(" left</s>", answer=True),
    ]


def test_a_document_is_encoded_by_segment_with_a_mask_of_answers(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A start token, then the tokens of each segment; the end token of an answer belongs to it."""
    bags, answers, _ = DocumentEncoder(tokenizer)(document(3))

    ids = [bag[0] for bag in bags]
    assert all(len(bag) == 1 for bag in bags)
    assert len(ids) == len(answers)
    assert ids[0] == tokenizer.bos_token_id
    assert not answers[0]
    assert tokenizer.decode(ids[1:]) == "".join(segment.text for segment in document(3))
    supervised = [token for token, in_answer in zip(ids, answers, strict=True) if in_answer]
    assert tokenizer.decode(supervised) == " 3 two three</s> left</s>"
    assert supervised.count(tokenizer.eos_token_id) == 2
    assert ids.count(tokenizer.bos_token_id) == 1


def test_rows_are_concatenated_documents_of_one_length(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Each row begins with a document, has one token more than the length, and no padding."""
    reader = PackedReader((document(number) for number in count()), tokenizer)
    encode = DocumentEncoder(tokenizer)
    documents = [
        list(zip([bag[0] for bag in encoded.bags], encoded.answers, strict=True))
        for encoded in map(encode, map(document, range(64)))
    ]

    ids, answers, references = reader.rows(5, 61)

    assert ids.shape == (5, 62, MAX_WORDS)
    assert references.shape == (5, 62, 6)
    ids = ids[:, :, 0]
    assert ids.shape == answers.shape == (5, 62)
    assert answers.dtype == torch.bool
    for row_ids, row_answers in zip(ids.tolist(), answers.tolist(), strict=True):
        row = list(zip(row_ids, row_answers, strict=True))
        starts = [index for index, token in enumerate(row_ids) if token == tokenizer.bos_token_id]
        assert starts[0] == 0
        assert len(starts) > 1
        assert all(row[start:end] in documents for start, end in pairwise(starts))
        last = row[starts[-1] :]
        assert any(last == tokens[: len(last)] for tokens in documents)


def test_rows_continue_the_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    """No document occurs twice."""
    texts = (f"{number} {'dog ' * 3}" for number in count(100))
    reader = PackedReader(([CorpusSegment(text, answer=True)] for text in texts), tokenizer)
    rows = chain(*(reader.rows(3, 41).ids[:, :, 0].tolist() for _ in range(4)))
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
    """Sample sixty scenes by the paths of their images."""
    return {
        f"{index}.jpg": sample_scene(index, seed=5, split="train", shapes=glyph_shapes())
        for index in range(60)
    }


@pytest.fixture(scope="module")
def trained(scenes: dict[str, Scene]) -> PreTrainedTokenizerFast:
    """Train a tokenizer on captions and bags."""

    def texts() -> Iterator[str]:
        generator = random.Random(1)
        for scene in scenes.values():
            yield " ".join(captions_of(scene))
            yield from ("".join(bags_of_words(scene, generator)) for _ in range(3))
        yield from (f" {word}" * 20 for word in (*OBJECT_KINDS, *COLORS, *BACKGROUNDS))

    return train_tokenizer(texts(), 700)


def test_every_word_of_a_bag_is_one_token(
    trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """Words of bags are truncated to one token."""
    for scene in scenes.values():
        for bag in bags_of_words(scene, random.Random(2)):
            assert len(trained.tokenize(bag)) == len(bag.split()) + 2
    assert len(trained) <= 700 + len(CENTER_TOKENS)


def test_the_tokenizer_is_like_llamas(trained: PreTrainedTokenizerFast) -> None:
    """A start token before any text, any characters are decoded again, and padding has its own token."""
    text = "A dög, 7 cats\n 🐕 <image>"
    ids = trained(text).input_ids
    assert ids[0] == trained.bos_token_id == trained.convert_tokens_to_ids(START)
    assert trained.decode(ids, skip_special_tokens=True) == text
    assert trained.eos_token_id == trained.convert_tokens_to_ids(END)
    special = {trained.unk_token_id, trained.bos_token_id, trained.eos_token_id}
    assert len({*special, trained.pad_token_id}) == 4


@pytest.fixture
def model(trained: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Create a tiny LLaMA for the trained tokenizer."""
    torch.manual_seed(1)
    settings = LanguagePretraining(width=22, inner_width=26, layers=2, heads=1)
    return LlamaForCausalLM(_config(trained, settings))


def test_the_config_follows_the_settings(model: LlamaForCausalLM) -> None:
    """It has positions for long dialogues, and the special tokens of the tokenizer."""
    config = model.config
    assert isinstance(config, LlamaConfig)
    assert (config.hidden_size, config.intermediate_size) == (22, 26)
    assert (config.num_hidden_layers, config.num_attention_heads) == (2, 1)
    assert config.max_position_embeddings >= 2048
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)
    assert model.model.embed_tokens.weight is not model.lm_head.weight


def test_a_model_to_continue_from_gets_tokens_of_centers_in_their_order(
    tmp_path: Path,
) -> None:
    """Embeddings of near centers are similar, of far ones opposite; those of words do not change."""
    former = train_tokenizer(iter([" ".join(("", *WORDS)) * 20]), 600)
    config = _config(former, LanguagePretraining(width=22, inner_width=26, layers=2, heads=1))
    config.vocab_size = len(former) - len(CENTER_TOKENS)
    model = LlamaForCausalLM(config)
    state = json.loads(former.backend_tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if token["content"] not in CENTER_TOKENS
    ]
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token=START
    ).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)

    tokenizer, continued = open_start(tmp_path)

    assert len(tokenizer) == continued.config.vocab_size == config.vocab_size + len(CENTER_TOKENS)
    table = continued.model.embed_tokens.weight.detach()
    torch.testing.assert_close(table[: config.vocab_size], model.model.embed_tokens.weight.detach())
    x = table[torch.tensor(tokenizer.convert_tokens_to_ids(list(CENTER_TOKENS[:16])))]
    assert float(torch.cosine_similarity(x[0], x[1], dim=0)) > 0.5
    assert float(torch.cosine_similarity(x[0], x[15], dim=0)) < -0.5


def test_the_loss_weights_answers_fully_and_prompts_a_little(model: LlamaForCausalLM) -> None:
    """It is the weighted mean over next tokens, computed one by one; the second value is the mean over answers."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(4, 300, (3, 12), generator=generator)
    answers = torch.rand(3, 12, generator=generator) < 0.4

    bags = torch.full((3, 12, MAX_WORDS), -1)
    bags[:, :, 0] = ids
    rows = TokenRows(bags, answers, torch.tensor(NO_REFERENCE).expand(3, 12, -1))

    loss, references, answer_loss = compute_losses(model, ReferenceHead(22), rows, 0.25)

    with torch.no_grad(), autocast_matmul():
        logits = model(input_ids=ids[:, :-1]).logits
    total = weight_sum = answer_sum = 0.0
    for row in range(3):
        for index in range(11):
            scores = logits[row, index].float()
            nats = float(scores.logsumexp(0) - scores[ids[row, index + 1]])
            weight = 1.0 if answers[row, index + 1] else 0.25
            total, weight_sum = total + weight * nats, weight_sum + weight
            answer_sum += nats * bool(answers[row, index + 1])
    assert float(loss.detach()) == pytest.approx(total / weight_sum, rel=1e-3)
    assert answer_loss == pytest.approx(answer_sum / int(answers[:, 1:].sum()), rel=1e-3)
    assert float(references.detach()) == 0
    loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_bag_is_one_position_with_all_its_words(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast
) -> None:
    """Its embedding is the sum of its words' with the norm of a word, and it is never a target."""
    segments = [
        CorpusSegment("", cells=(" dog", " car red top left")),
        CorpusSegment(" dog", answer=True),
    ]

    bags, answers, references = DocumentEncoder(trained)(segments)

    assert [len(bag) for bag in bags] == [1, 1, 4, 1]
    assert answers == [False, False, False, True]
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    table = embeddings.weight.detach()
    embedded = embed(model, as_tensor(bags).unsqueeze(0))[0]
    torch.testing.assert_close(embedded[1], table[bags[1][0]])
    torch.testing.assert_close(embedded[2], table[list(bags[2])].sum(dim=0) / 2)
    ids, mask = as_tensor(bags).unsqueeze(0), torch.tensor([answers])
    with torch.no_grad():
        logits = model(inputs_embeds=embed(model, ids[:, :-1])).logits[0].float()
        rows = TokenRows(ids, mask, torch.tensor(references).unsqueeze(0))
        loss = compute_losses(model, ReferenceHead(22), rows, 0.25).weighted
    dog = bags[1][0]
    first = float(logits[0].logsumexp(0) - logits[0, dog])
    last = float(logits[2].logsumexp(0) - logits[2, dog])
    assert float(loss) == pytest.approx((0.25 * first + last) / 1.25, rel=1e-3)


def test_noise_changes_bags_and_not_words(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast
) -> None:
    """Bags of several words change, more with more noise and differently each time; single words do not."""
    segments = [
        CorpusSegment("", cells=(" dog", " car red top left")),
        CorpusSegment(" dog", answer=True),
    ]
    ids = as_tensor(DocumentEncoder(trained)(segments).bags).unsqueeze(0)
    exact = embed(model, ids)[0]
    low, high, again = (embed(model, ids, noise)[0] for noise in (0.1, 5.0, 5.0))
    for noisy in (low, high):
        torch.testing.assert_close(noisy[[0, 1, 3]], exact[[0, 1, 3]])
    distances = [float((noisy[2] - exact[2]).detach().norm()) for noisy in (low, high)]
    assert 0 < distances[0] < distances[1]
    assert not torch.equal(high[2], again[2])


def test_the_schedule_restarts_only_where_a_phase_says_so() -> None:
    """Other phases continue the schedule."""
    settings = LanguagePretraining()
    rates = _learning_rates(settings)
    assert len(rates) == sum(phase.steps for phase in settings.phases)
    rises = sum(rates[step] > 3 * rates[step - 1] for step in range(1, len(rates)))
    assert rises == sum(phase.restart_schedule for phase in settings.phases) > 0
    peaks = {phase.learning_rate for phase in settings.phases}
    assert 0.9 * max(peaks) < max(rates) <= max(peaks)
    assert rates[-1] < 1e-3 * min(peaks)


def about(path: str, kind: str, *answers: str) -> Conversation:
    """Return a dialogue of a kind about one scene."""
    turns = []
    for number, answer in enumerate(answers):
        question = (ImageRef(path), "\nWhat?") if number == 0 else ("What?",)
        turns += [Turn("user", question), Turn("assistant", (answer,))]
    return Conversation(f"{path}-{kind}", tuple(turns))


def test_a_random_model_scores_zero(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """Every kind of dialogue and question that occurs is scored, and no other."""
    dialogues = [about("1.jpg", "vqa", "dog", "two"), about("2.jpg", "context", "neither")]
    scores = evaluate_answers(model, trained, dialogues, scenes, DescriptionMix(bags=1.0))
    assert scores == {"vqa": 0.0, "context": 0.0, "other": 0.0}
    assert model.training


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many dogs do you see?", "count"),
        ("What colour is the car?", "color"),
        ("Where is the dog?", "position"),
        ("In which part of the picture is the dog?", "position"),
        ("Where was this picture taken?", "other"),
        ("Is the dog to the left or to the right of the car?", "relation"),
        ("Is the dog below the car?", "relation"),
        ("Is the dog to the right of the car?", "relation"),
        ("How many dogs do the pictures show together?", "altogether"),
        ("Which picture has more dogs, A or B?", "more"),
        ("Which picture shows a dog?", "which image"),
        ("Which kind of thing is in both A and B?", "in both"),
        ("Which of the animals of A and B are in C?", "found again"),
        ("Do A and C show the same kind of place?", "same place"),
        ("Is the setting of B also that of C?", "same place"),
        ("What is the setting?", "other"),
    ],
)
def test_question_types(question: str, expected: str) -> None:
    """The type depends only on the last question."""
    assert _question_type(f"USER: How many cats? ASSISTANT: two</s>USER: {question}") == expected


def test_an_answer_is_correct_with_all_its_tokens_and_the_end_token(
    model: LlamaForCausalLM, trained: PreTrainedTokenizerFast, scenes: dict[str, Scene]
) -> None:
    """A model that answers 'dog' and stops is correct where the answer is exactly that."""
    prompt_end, dog = (
        trained(text, add_special_tokens=False).input_ids[-1] for text in (" ASSISTANT:", " dog")
    )
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    # Without layers, logits are products of embeddings and head: 'dog' follows the prompt, the end token follows 'dog'.
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        embedding[prompt_end, 0] = head[dog, 0] = 1
        embedding[dog, 1] = head[trained.eos_token_id, 1] = 1

    dialogues = [
        about("1.jpg", "vqa", "dog", "two", "dog"),
        about("2.jpg", "context", "dog dog"),
        about("3.jpg", "context", "dog"),
    ]
    scores = evaluate_answers(model, trained, dialogues, scenes, DescriptionMix(bags=1.0))
    assert scores == {"vqa": 0.667, "context": 0.5, "other": 0.6}
