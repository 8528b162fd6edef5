"""Pretraining of a tiny LLaMA and its tokenizer on text about scenes, without images.

First short questions and drills only, then all kinds of dialogues, then the same with noise on the input; last, with
comparisons of objects and of scenes. Most scenes are described by rows of cells with several words each, as image
tokens will be.
"""

import logging
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.corpus_reader import NO_WORD, DocumentEncoder, PackedReader, TokenRows, as_tensor
from backbones.document_stream import stream_documents
from backbones.language_settings import LanguagePretraining
from backbones.optimization import (
    attention,
    autocast_matmul,
    build_adamw,
    cosine_schedule,
    optimizer_step,
    save_fp16,
)
from backbones.patch_words import CENTER_TOKENS, WORDS
from backbones.quizzes import annotate
from backbones.references import ReferenceHead
from backbones.text_corpus import DescriptionMix, bags_of_words, dialogue_document
from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import Conversation
from caldera.instructions.dialogues import Kind, generate_dialogues
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, Scene, sample_scene

log = logging.getLogger(__name__)

START, END, UNKNOWN, PADDING = "<s>", "</s>", "<unk>", "<pad>"

_KIND_SHARES: dict[Kind, float] = {
    "conversation": 0.4,
    "detail": 0.2,
    "reasoning": 0.3,
    "vqa": 1.0,
    "context": 0.6,
}

_EMBEDDING_STD = 0.2
"""Standard deviation of new word embeddings. Drills were learned a little faster than with 0.02. They are not tied to
the output: tied embeddings of the colors, which are similar as answers, collapsed (cosine 0.92 after 750 steps)."""


def sample_dialogues(count: int, seed: int) -> tuple[list[Conversation], dict[str, Scene]]:
    """Let the scripted teacher write dialogues about new scenes, and return them with the scenes by image path."""
    shapes = glyph_shapes()
    scenes = {
        f"{index:06d}.jpg": sample_scene(index, seed=seed, split="train", shapes=shapes)
        for index in range(count)
    }
    images = tuple(annotate(scene, Path(path)) for path, scene in scenes.items())
    annotations = AnnotationSet(images, tuple(OBJECT_KINDS))
    teacher = ScriptedTeacher(annotations.categories, seed)
    data = generate_dialogues(annotations, teacher, _KIND_SHARES, seed=seed, relative_to=Path())
    return data.conversations, scenes


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts a start token before a text, as LLaMA's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[UNKNOWN, START, END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, bpe.token_to_id(START))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=2048,
    )
    tokenizer.add_tokens(list(CENTER_TOKENS))
    for word in WORDS:
        assert len(tokenizer.tokenize(f" {word}")) == 1, f"{word!r} should be one token"
    return tokenizer


def embed(model: LlamaForCausalLM, ids: Tensor, noise: float = 0.0) -> Tensor:
    """Return the embeddings of bags, (rows, tokens, words), as the sum of their words: (rows, tokens, width).

    The sum is divided by the square root of their number, so that a bag has the norm of a word. With `noise`, noise of
    that relative standard deviation is added to bags of several words, and their words get weights from 0.5 to 1.5.
    """
    is_word = (ids != NO_WORD).unsqueeze(-1)  # (rows, tokens, words, 1)
    words = model.get_input_embeddings()(ids.clamp(min=0)) * is_word  # (rows, tokens, words, width)
    norm = is_word.sum(dim=2).sqrt()  # (rows, tokens, 1)
    if not noise:
        return words.sum(dim=2) / norm
    is_bag = norm > 1  # (rows, tokens, 1)
    weights = 1 + (torch.rand(words.shape[:-1]) - 0.5).unsqueeze(-1) * is_bag.unsqueeze(2)
    bags = (words * weights).sum(dim=2) / norm  # (rows, tokens, width)
    return bags + noise * bags.detach().std() * torch.randn(bags.shape) * is_bag


@torch.no_grad()
def evaluate_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    scenes: dict[str, Scene],
    mix: DescriptionMix,
) -> dict[str, float]:
    """Return the exact match accuracy of answers about held-out scenes, by kind of dialogue and of question."""
    model.eval()
    matches: dict[str, list[bool]] = defaultdict(list)
    rng, encode = random.Random(0), DocumentEncoder(tokenizer)
    for conversation in conversations:
        document = dialogue_document(conversation, scenes, end=END, mix=mix, rng=rng)
        bags, answers, _ = encode(document)
        embedded = embed(model, as_tensor(bags).unsqueeze(0))
        predicted = model(inputs_embeds=embedded).logits[0].argmax(dim=-1).tolist()
        ids = [bag[0] for bag in bags]
        kind = conversation.id.rsplit("-", 1)[1]
        start = 0
        for end in range(1, len(ids) + 1):
            is_end = end == len(ids) or answers[end] != answers[end - 1]
            if is_end and answers[end - 1] and start:
                match = predicted[start - 1 : end - 1] == ids[start:end]
                question = str(tokenizer.decode(ids[max(0, start - 30) : start]))
                matches[kind].append(match)
                matches[_question_type(question)].append(match)
            if is_end:
                start = end
    model.train()
    return {kind: round(sum(items) / len(items), 3) for kind, items in sorted(matches.items())}


_QUESTION_PATTERNS = {
    "altogether": r"together",
    "count": r"How many",
    "color": r"colour",
    "position": r"Where (?:is|in)|which part",
    "relation": r"to the (?:left|right)|above|below",
    "same place": r"same kind of place|setting of",
    "more": r"has more",
    "which image": r"Which picture shows",
    "in both": r"both show|in both",
    "found again": r"are in C|also in C",
}
"""Types of questions by their wording."""


def _question_type(context: str) -> str:
    """Return the type of the last question of a context."""
    question = context.rsplit("USER:", 1)[-1]
    types = (name for name, words in _QUESTION_PATTERNS.items() if re.search(words, question))
    return next(types, "other")


def pretrain_language(out: Path, settings: LanguagePretraining, start: Path | None = None) -> None:
    """Train tokenizer and model and save their folder.

    Args:
        out: The folder to write.
        settings: Settings of the training.
        start: Folder of a tokenizer and model to continue from.
    """
    torch.manual_seed(settings.seed)
    conversations, scenes = sample_dialogues(settings.scenes, settings.seed)
    held_out, held_out_scenes = sample_dialogues(150, settings.seed + 1)
    held_out = [item for item in held_out if item.id.endswith(("-vqa", "-context"))]
    if start:
        tokenizer, model = open_start(start)
    else:
        tokenizer = train_tokenizer(
            _texts(conversations, scenes, settings.seed), settings.vocabulary
        )
        model = LlamaForCausalLM(_config(tokenizer, settings))
        nn.init.normal_(model.model.embed_tokens.weight, std=_EMBEDDING_STD)
        order_centers(model, tokenizer)
    head = ReferenceHead(model.config.hidden_size)
    trained = nn.ModuleList([model, head])
    rates = _learning_rates(settings)
    optimizer = build_adamw(trained, max(rates), settings.weight_decay, betas=(0.9, 0.95))
    step, num_tokens, start_time, total = 0, 0, time.monotonic(), len(rates)
    for index, phase in enumerate(settings.phases):
        dialogues = [item for item in conversations if item.id.endswith(phase.kinds)]
        seed = settings.seed + index
        stream = stream_documents(dialogues, scenes, end=END, mix=phase.mix, seed=seed)
        reader = PackedReader(stream, tokenizer)
        for _ in range(phase.steps):
            rows = reader.rows(phase.rows, settings.row_length)
            losses = compute_losses(model, head, rows, settings.prompt_weight, phase.noise)
            loss = losses.weighted + settings.reference_weight * losses.references
            optimizer_step(loss, trained, optimizer, rates[step])
            step += 1
            num_tokens += phase.rows * settings.row_length
            if step % 50 == 0 or step == total:
                speed = num_tokens / (time.monotonic() - start_time)
                log.info(
                    "language %5d  answers %.3f  references %.3f  %.0f tokens/s",
                    step,
                    losses.answers,
                    losses.references,
                    speed,
                )
            if step % 250 == 0 or step == total:
                scores = evaluate_answers(model, tokenizer, held_out, held_out_scenes, phase.mix)
                log.info("language %5d  %s", step, scores)
                save_fp16(model, out)
                tokenizer.save_pretrained(out)


def open_start(start: Path) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM]:
    """Open a tokenizer and model to continue from; a model without tokens of centers gets them."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.set_attn_implementation(attention())
    if tokenizer.add_tokens(list(CENTER_TOKENS)):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        order_centers(model, tokenizer)
    return tokenizer, model


def order_centers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Lay the embeddings of each axis' center tokens on a line, in their order, with some noise."""
    embedding = model.model.embed_tokens.weight
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(CENTER_TOKENS))).view(2, -1)
    steps = torch.linspace(-2, 2, ids.shape[1])  # (bins,)
    with torch.no_grad():
        for axis in ids:
            line = torch.outer(steps, torch.randn(embedding.shape[1]))  # (bins, width)
            embedding[axis] = _EMBEDDING_STD * (line + 0.3 * torch.randn(line.shape))


def _learning_rates(settings: LanguagePretraining) -> list[float]:
    """Return the learning rate of every step, with one schedule for all phases up to the next restart."""
    schedules: list[list[float]] = []
    for phase in settings.phases:
        if phase.restart_schedule or not schedules:
            schedules.append([])
        schedules[-1] += [phase.learning_rate] * phase.steps
    return [
        peak * cosine_schedule(step, len(peaks), min(settings.warmup_steps, len(peaks) // 5))
        for peaks in schedules
        for step, peak in enumerate(peaks)
    ]


def _texts(
    conversations: Sequence[Conversation], scenes: dict[str, Scene], seed: int
) -> Iterator[str]:
    """Yield texts for the tokenizer, with the words of bags often enough for each to become one token."""
    stream = stream_documents(conversations, scenes, end="", mix=DescriptionMix(), seed=seed)
    for document in islice(stream, 4000):
        yield "".join(segment.text for segment in document)
    rng = random.Random(seed)
    yield from ("".join(bags_of_words(scene, rng)) for scene in islice(scenes.values(), 2000))


def _config(tokenizer: PreTrainedTokenizerFast, settings: LanguagePretraining) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.inner_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = attention()
    return config


class Losses(NamedTuple):
    """Losses of token rows."""

    weighted: Tensor
    """Cross entropy of next tokens, weighted, in nats per token."""

    references: Tensor
    """Loss of the reference head."""

    answers: float
    """Plain mean of the cross entropy over answers."""


def compute_losses(
    model: LlamaForCausalLM,
    head: ReferenceHead,
    rows: TokenRows,
    prompt_weight: float,
    noise: float = 0.0,
) -> Losses:
    """Return the losses of token rows."""
    ids = rows.ids
    with autocast_matmul():
        inputs = embed(model, ids[:, :-1], noise)
        output = model(inputs_embeds=inputs, output_hidden_states=True)
    middle = output.hidden_states[model.config.num_hidden_layers // 2]  # (rows, tokens, width)
    references = head(middle, rows.references[:, :-1])
    targets = ids[:, 1:, 0].flatten()  # (rows * tokens,)
    losses = cross_entropy(output.logits.float().flatten(0, 1), targets, reduction="none")
    in_answer = rows.answers[:, 1:].flatten()  # (rows * tokens,)
    # Bags of several words are not predicted.
    is_token = ids[:, 1:, 1].flatten() == NO_WORD
    weights = in_answer.float().clamp(min=prompt_weight) * is_token
    weighted = (losses * weights).sum() / weights.sum()
    return Losses(weighted, references, float(losses[in_answer].detach().mean()))
