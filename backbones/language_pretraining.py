"""Pretraining of a tiny LLaMA and its tokenizer on text about scenes, without images.

Three phases: short questions and drills only, then all kinds of dialogues, and last the same with noise on the input.
Most scenes are described by rows of cells with several words each, as image tokens will be.
"""

import logging
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backbones.optimization import (
    attention,
    autocast_matmul,
    build_adamw,
    cosine_schedule,
    optimizer_step,
    save_fp16,
)
from backbones.patch_words import WORDS
from backbones.text_corpus import (
    DescriptionMix,
    Document,
    bags_of_words,
    dialogue_document,
    stream_documents,
)
from caldera.conversation import Conversation, read_conversations
from caldera.scenes.coco_folder import write_scenes
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import Scene, sample_scene

log = logging.getLogger(__name__)

START, END, UNKNOWN, PADDING = "<s>", "</s>", "<unk>", "<pad>"

_KIND_SHARES = "conversation:0.4,detail:0.2,reasoning:0.3,vqa,context:0.6"
_MAX_WORDS = 5
"""Maximal number of words in a bag: kind, color, number and two for the position."""

_EMBEDDING_STD = 0.2
"""Standard deviation of new word embeddings. Drills were learned a little faster than with 0.02. They are not tied to
the output: tied embeddings of the colors, which are similar as answers, collapsed (cosine 0.92 after 750 steps)."""

_ALL_KINDS = ("vqa", "context", "conversation", "detail", "reasoning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A phase of the training."""

    steps: int
    mix: DescriptionMix
    """Forms of the descriptions of scenes."""

    kinds: tuple[str, ...]
    """Kinds of the dialogues, the suffix of their id."""

    noise: float = 0.0
    """Standard deviation of the noise on the input of bags, relative to theirs; image tokens will be inexact too."""

    restart_schedule: bool = False
    """Whether the learning rate schedule restarts with this phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePretraining:
    """Settings of the language model's pretraining."""

    scenes: int = 20_000
    seed: int = 8001
    """Seed of the scenes; different from the demo's and the vision tower's."""

    phases: tuple[Phase, ...] = (
        Phase(steps=500, mix=DescriptionMix(bags=0.5, drills=1.0), kinds=("vqa",)),
        Phase(steps=3000, mix=DescriptionMix(bags=0.7, drills=0.4), kinds=_ALL_KINDS),
        Phase(
            steps=1700,
            mix=DescriptionMix(bags=0.85, drills=0.4),
            kinds=_ALL_KINDS,
            noise=0.3,
            restart_schedule=True,
        ),
    )
    rows: int = 16
    row_length: int = 384
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    prompt_weight: float = 0.1
    """Weight of the loss on tokens outside answers."""

    vocabulary: int = 1024
    width: int = 192
    inner_width: int = 512
    layers: int = 4
    heads: int = 3


def read_scenes(work: Path, count: int, seed: int) -> tuple[list[Conversation], dict[str, Scene]]:
    """Generate dialogues about new scenes with the command line, and return them with the scenes by image path."""
    folder, file = work / f"scenes-{seed}", work / f"dialogues-{seed}.json"
    if not folder.is_dir():
        write_scenes(folder, "train", count, seed=seed)
    if not file.is_file():
        command = [
            "data",
            "generate",
            "coco",
            str(folder),
            "--kinds",
            _KIND_SHARES,
            "--out",
            str(file),
        ]
        subprocess.run([sys.executable, "-m", "caldera", *command, f"--seed={seed}"], check=True)
    conversations = read_conversations(file)
    paths = {path for conversation in conversations for path in conversation.images}
    shapes = glyph_shapes()
    return conversations, {
        path: sample_scene(int(Path(path).stem) - 1, seed=seed, split="train", shapes=shapes)
        for path in sorted(paths)
    }


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
    for word in WORDS:
        assert len(tokenizer.tokenize(f" {word}")) == 1, f"{word!r} should be one token"
    return tokenizer


WordBag = tuple[int, ...]
"""Token ids of one position: several words of a cell, otherwise one token."""

_NO_WORD = -1
"""Padding of a bag up to the maximal number of words."""


class PackedReader:
    """Rows of tokens of one length, cut from concatenated documents."""

    def __init__(self, stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._pool: list[tuple[list[WordBag], list[bool]]] = []

    def rows(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return ids, (count, length + 1, words), and a mask of answer tokens, (count, length + 1)."""
        ids, masks = [], []
        for _ in range(count):
            row: list[WordBag] = []
            mask: list[bool] = []
            while len(row) <= length:
                bags, answers = self._next_document()
                row += bags
                mask += answers
            ids.append(as_tensor(row[: length + 1]))
            masks.append(mask[: length + 1])
        return torch.stack(ids), torch.tensor(masks)

    def _next_document(self) -> tuple[list[WordBag], list[bool]]:
        if not self._pool:
            batch = list(islice(self._stream, 64))
            self._pool = [encode(document, self._tokenizer) for document in batch]
        return self._pool.pop()


def encode(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[WordBag], list[bool]]:
    """Return the ids of a document and a mask of its answer tokens."""
    bags: list[WordBag] = [(tokenizer.bos_token_id,)]
    answers = [False]
    for segment in document:
        new_bags: list[WordBag]
        if segment.cells:
            ids = tokenizer(list(segment.cells), add_special_tokens=False).input_ids
            new_bags = [tuple(words[:_MAX_WORDS]) for words in ids]
        else:
            ids = tokenizer(segment.text, add_special_tokens=False).input_ids
            new_bags = [(token,) for token in ids]
        bags += new_bags
        answers += [segment.answer] * len(new_bags)
    return bags, answers


def as_tensor(bags: Sequence[WordBag]) -> Tensor:
    """Return padded bags, (tokens, words)."""
    return torch.tensor([[*bag, *[_NO_WORD] * (_MAX_WORDS - len(bag))] for bag in bags])


def embed(model: LlamaForCausalLM, ids: Tensor, noise: float = 0.0) -> Tensor:
    """Return the embeddings of bags, (rows, tokens, words), as the sum of their words: (rows, tokens, width).

    The sum is divided by the square root of their number, so that a bag has the norm of a word. With `noise`, noise of
    that relative standard deviation is added to bags of several words, and their words get weights from 0.5 to 1.5.
    """
    is_word = (ids != _NO_WORD).unsqueeze(-1)  # (rows, tokens, words, 1)
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
    rng = random.Random(0)
    for conversation in conversations:
        document = dialogue_document(conversation, scenes, end=END, mix=mix, rng=rng)
        bags, answers = encode(document, tokenizer)
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
    "count": r"How many",
    "color": r"colour",
    "position": r"Where (?:is|in)|which part",
    "relation": r"left|above|below",
    "same place": r"same kind of place|setting of",
}
"""Types of questions by their wording."""


def _question_type(context: str) -> str:
    """Return the type of the last question of a context."""
    question = context.rsplit("USER:", 1)[-1]
    types = (name for name, words in _QUESTION_PATTERNS.items() if re.search(words, question))
    return next(types, "other")


def pretrain_language(
    out: Path, work: Path, settings: LanguagePretraining, start: Path | None = None
) -> None:
    """Train tokenizer and model and save their folder.

    Args:
        out: The folder to write.
        work: Folder of the scenes and dialogues.
        settings: Settings of the training.
        start: Folder of a tokenizer and model to continue from.
    """
    torch.manual_seed(settings.seed)
    conversations, scenes = read_scenes(work, settings.scenes, settings.seed)
    held_out, held_out_scenes = read_scenes(work, 150, settings.seed + 1)
    held_out = [item for item in held_out if item.id.endswith(("-vqa", "-context"))]
    if start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        model.set_attn_implementation(attention())
    else:
        tokenizer = train_tokenizer(
            _texts(conversations, scenes, settings.seed), settings.vocabulary
        )
        model = LlamaForCausalLM(_config(tokenizer, settings))
        nn.init.normal_(model.model.embed_tokens.weight, std=_EMBEDDING_STD)
    optimizer = build_adamw(model, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.95))
    rates = _learning_rates(settings)
    step, start_time, total = 0, time.monotonic(), len(rates)
    for index, phase in enumerate(settings.phases):
        dialogues = [item for item in conversations if item.id.endswith(phase.kinds)]
        seed = settings.seed + index
        stream = stream_documents(dialogues, scenes, end=END, mix=phase.mix, seed=seed)
        reader = PackedReader(stream, tokenizer)
        for _ in range(phase.steps):
            ids, answers = reader.rows(settings.rows, settings.row_length)
            loss, answer_loss = _losses(model, ids, answers, settings.prompt_weight, phase.noise)
            optimizer_step(loss, model, optimizer, rates[step])
            step += 1
            if step % 50 == 0 or step == total:
                speed = step * settings.rows * settings.row_length / (time.monotonic() - start_time)
                log.info("language %5d  answers %.3f  %.0f tokens/s", step, answer_loss, speed)
            if step % 250 == 0 or step == total:
                scores = evaluate_answers(model, tokenizer, held_out, held_out_scenes, phase.mix)
                log.info("language %5d  %s", step, scores)
                save_fp16(model, out)
                tokenizer.save_pretrained(out)


def _learning_rates(settings: LanguagePretraining) -> list[float]:
    """Return the learning rate of every step, with one schedule for all phases up to the next restart."""
    schedules: list[int] = []
    for phase in settings.phases:
        if phase.restart_schedule or not schedules:
            schedules.append(0)
        schedules[-1] += phase.steps
    return [
        settings.learning_rate
        * cosine_schedule(step, steps, min(settings.warmup_steps, steps // 5))
        for steps in schedules
        for step in range(steps)
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


def _losses(
    model: LlamaForCausalLM, ids: Tensor, answers: Tensor, prompt_weight: float, noise: float = 0.0
) -> tuple[Tensor, float]:
    """Return the weighted loss, and the plain mean over answers, in nats per token."""
    with autocast_matmul():
        inputs = embed(model, ids[:, :-1], noise)
        logits = model(inputs_embeds=inputs).logits  # (rows, tokens, vocabulary)
    targets = ids[:, 1:, 0].flatten()  # (rows * tokens,)
    losses = cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    in_answer = answers[:, 1:].flatten()  # (rows * tokens,)
    # Bags of several words are not predicted.
    is_token = ids[:, 1:, 1].flatten() == _NO_WORD
    weights = in_answer.float().clamp(min=prompt_weight) * is_token
    return (losses * weights).sum() / weights.sum(), float(losses[in_answer].detach().mean())
