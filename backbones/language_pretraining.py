"""Text about scenes in, a tiny LLaMA with its own tokenizer out. It never sees an image.

It learns in three phases: first to find what is asked for, then, with that skill, all kinds of dialogues, and last the
same with blurred input. Most scenes are told as rows of cells that say several words at once, as image tokens will.
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

_KINDS = "conversation:0.4,detail:0.2,reasoning:0.3,vqa,context:0.6"
_MAX_WORDS = 5
"""Words that a bag says at most: kind, color, number and two for the place."""

_WORD_SPREAD = 0.2
"""Of fresh word embeddings. Tied to the output, those of the colors, which are alike as answers, fell together (cosine
0.92 after 750 steps) and no color was found; with 0.2 drills were learned a little faster than with 0.02."""

_ALL_KINDS = ("vqa", "context", "conversation", "detail", "reasoning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of the training."""

    steps: int
    mix: DescriptionMix
    """In which ways scenes are told."""

    kinds: tuple[str, ...]
    """Dialogues that are read, by the end of their id."""

    noise: float = 0.0
    """How far the input of bags strays from their words, as image tokens will: noise, as a share of their spread."""

    restart_schedule: bool = False
    """Whether the rate rises and falls anew from here on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePretraining:
    """How the language model is trained."""

    scenes: int = 20_000
    seed: int = 8001
    """Seed of its scenes; the demo's and the vision tower's have others."""

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
    """Weight of the loss on what is not an answer."""

    vocabulary: int = 1024
    width: int = 192
    inner_width: int = 512
    layers: int = 4
    heads: int = 3


def read_scenes(work: Path, count: int, seed: int) -> tuple[list[Conversation], dict[str, Scene]]:
    """Have the scripted teacher write dialogues about fresh scenes, by the command that any user calls.

    Returns:
        The dialogues, and each scene by the path of its image.
    """
    folder, file = work / f"scenes-{seed}", work / f"dialogues-{seed}.json"
    if not folder.is_dir():
        write_scenes(folder, "train", count, seed=seed)
    if not file.is_file():
        command = ["data", "generate", "coco", str(folder), "--kinds", _KINDS, "--out", str(file)]
        subprocess.run([sys.executable, "-m", "caldera", *command, f"--seed={seed}"], check=True)
    conversations = read_conversations(file)
    paths = {path for conversation in conversations for path in conversation.images}
    scenes = {
        path: sample_scene(
            int(Path(path).stem) - 1, seed=seed, split="train", shapes=glyph_shapes()
        )
        for path in sorted(paths)
    }
    return conversations, scenes


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that puts a start mark before a text, as LLaMA's does."""
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
"""Ids of the words that one position says at once, nearly always one."""

_NOTHING = -1
"""Fills a bag up to the size of the largest."""


class PackedReader:
    """Documents in, rows of tokens out: laid end to end and cut to one length."""

    def __init__(self, stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._pool: list[tuple[list[WordBag], list[bool]]] = []

    def rows(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return ids, (count, length + 1, words), and whether each belongs to an answer, (count, length + 1)."""
        ids, answers = [], []
        for _ in range(count):
            row: list[WordBag] = []
            marks: list[bool] = []
            while len(row) <= length:
                document, known = self._next()
                row += document
                marks += known
            ids.append(as_tensor(row[: length + 1]))
            answers.append(marks[: length + 1])
        return torch.stack(ids), torch.tensor(answers)

    def _next(self) -> tuple[list[WordBag], list[bool]]:
        """Return one encoded document."""
        if not self._pool:
            batch = list(islice(self._stream, 64))
            self._pool = [encode(document, self._tokenizer) for document in batch]
        return self._pool.pop()


def encode(
    document: Document, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[WordBag], list[bool]]:
    """Return a document's ids and whether each belongs to an answer."""
    bags: list[WordBag] = [(tokenizer.bos_token_id,)]
    answers = [False]
    for piece in document:
        if piece.cells:
            said = tokenizer(list(piece.cells), add_special_tokens=False).input_ids
            fresh = [tuple(words[:_MAX_WORDS]) for words in said]
        else:
            fresh = [(each,) for each in tokenizer(piece.text, add_special_tokens=False).input_ids]
        bags += fresh
        answers += [piece.answer] * len(fresh)
    return bags, answers


def as_tensor(bags: Sequence[WordBag]) -> Tensor:
    """Return bags as (tokens, words), filled up."""
    return torch.tensor([[*bag, *[_NOTHING] * (_MAX_WORDS - len(bag))] for bag in bags])


def embed(model: LlamaForCausalLM, ids: Tensor, blur: float = 0.0) -> Tensor:
    """Return the input of bags, (rows, tokens, words), as the sum of their words: (rows, tokens, width).

    It is divided by the root of their number, so that a bag is as long as a word. With `blur`, noise of that share of
    their spread is added to bags of several words, whose words then weigh between half and one and a half.
    """
    said = (ids != _NOTHING).unsqueeze(-1)  # (rows, tokens, words, 1)
    words = model.get_input_embeddings()(ids.clamp(min=0)) * said  # (rows, tokens, words, width)
    length = said.sum(dim=2).sqrt()  # (rows, tokens, 1)
    if not blur:
        return words.sum(dim=2) / length
    several = length > 1  # (rows, tokens, 1)
    weights = 1 + (torch.rand(words.shape[:-1]) - 0.5).unsqueeze(-1) * several.unsqueeze(2)
    summed = (words * weights).sum(dim=2) / length  # (rows, tokens, width)
    return summed + blur * summed.detach().std() * torch.randn(summed.shape) * several


@torch.no_grad()
def evaluate_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    scenes: dict[str, Scene],
    telling: DescriptionMix,
) -> dict[str, float]:
    """Measure the share of short answers that are right word for word, on scenes that were not read."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    rng = random.Random(0)
    for conversation in conversations:
        document = dialogue_document(conversation, scenes, end=END, telling=telling, rng=rng)
        bags, answers = encode(document, tokenizer)
        embedded = embed(model, as_tensor(bags).unsqueeze(0))
        said = model(inputs_embeds=embedded).logits[0].argmax(dim=-1).tolist()
        ids = [bag[0] for bag in bags]
        kind = conversation.id.rsplit("-", 1)[1]
        start = 0
        for at in range(1, len(ids) + 1):
            ends = at == len(ids) or answers[at] != answers[at - 1]
            if ends and answers[at - 1] and start:
                same = said[start - 1 : at - 1] == ids[start:at]
                right[kind].append(same)
                right[
                    _question_type(str(tokenizer.decode(ids[max(0, start - 30) : start])))
                ].append(same)
            if ends:
                start = at
    model.train()
    return {kind: round(sum(marks) / len(marks), 3) for kind, marks in sorted(right.items())}


_SUBJECTS = {
    "count": r"How many",
    "colour": r"colour",
    "position": r"Where (?:is|in)|which part",
    "relation": r"left|above|below",
    "same place": r"same kind of place|setting of",
}
"""Words that tell what a question is about."""


def _question_type(before: str) -> str:
    """Name what a question is about, by its wording."""
    question = before.rsplit("USER:", 1)[-1]
    return next((name for name, words in _SUBJECTS.items() if re.search(words, question)), "other")


def pretrain_language(
    out: Path, work: Path, settings: LanguagePretraining, start: Path | None = None
) -> None:
    """Train tokenizer and model and write their folder.

    Args:
        out: The folder.
        work: Keeps the scenes and dialogues.
        settings: How it is trained.
        start: Folder of a tokenizer and model to go on from.
    """
    torch.manual_seed(settings.seed)
    conversations, scenes = read_scenes(work, settings.scenes, settings.seed)
    unseen, unseen_scenes = read_scenes(work, 150, settings.seed + 1)
    unseen = [one for one in unseen if one.id.endswith(("-vqa", "-context"))]
    if start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
        model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        model.set_attn_implementation(attention())
    else:
        texts = _texts(conversations, scenes, settings.seed)
        tokenizer = train_tokenizer(texts, settings.vocabulary)
        model = LlamaForCausalLM(_config(tokenizer, settings))
        nn.init.normal_(model.model.embed_tokens.weight, std=_WORD_SPREAD)
    optimizer = build_adamw(model, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.95))
    rates = _rates(settings)
    step, begun, total = 0, time.monotonic(), len(rates)
    for which, phase in enumerate(settings.phases):
        read = [one for one in conversations if one.id.endswith(phase.kinds)]
        seed = settings.seed + which
        stream = stream_documents(read, scenes, end=END, telling=phase.mix, seed=seed)
        reader = PackedReader(stream, tokenizer)
        for _ in range(phase.steps):
            ids, answers = reader.rows(settings.rows, settings.row_length)
            loss, answer_loss = _losses(model, ids, answers, settings.prompt_weight, phase.noise)
            optimizer_step(loss, model, optimizer, rates[step])
            step += 1
            if step % 50 == 0 or step == total:
                speed = step * settings.rows * settings.row_length / (time.monotonic() - begun)
                log.info("language %5d  answers %.3f  %.0f tokens/s", step, answer_loss, speed)
            if step % 250 == 0 or step == total:
                found = evaluate_answers(model, tokenizer, unseen, unseen_scenes, phase.mix)
                log.info("language %5d  %s", step, found)
                save_fp16(model, out)
                tokenizer.save_pretrained(out)


def _rates(settings: LanguagePretraining) -> list[float]:
    """Return the learning rate of every step; it rises and falls once for each stretch of phases."""
    stretches: list[int] = []
    for phase in settings.phases:
        if phase.restart_schedule or not stretches:
            stretches.append(0)
        stretches[-1] += phase.steps
    return [
        settings.learning_rate
        * cosine_schedule(step, steps, min(settings.warmup_steps, steps // 5))
        for steps in stretches
        for step in range(steps)
    ]


def _texts(
    conversations: Sequence[Conversation], scenes: dict[str, Scene], seed: int
) -> Iterator[str]:
    """Yield text for the tokenizer; the words of bags are in it often enough to be one token each."""
    stream = stream_documents(conversations, scenes, end="", telling=DescriptionMix(), seed=seed)
    for document in islice(stream, 4000):
        yield "".join(piece.text for piece in document)
    rng = random.Random(seed)
    yield from ("".join(bags_of_words(scene, rng)) for scene in islice(scenes.values(), 2000))


def _config(tokenizer: PreTrainedTokenizerFast, settings: LanguagePretraining) -> LlamaConfig:
    """Return the model's shape."""
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
    model: LlamaForCausalLM, ids: Tensor, answers: Tensor, prompt_weight: float, blur: float = 0.0
) -> tuple[Tensor, float]:
    """Return the weighted loss, and the plain mean over answers, in nats per token."""
    with autocast_matmul():
        logits = model(
            inputs_embeds=embed(model, ids[:, :-1], blur)
        ).logits  # (rows, tokens, vocabulary)
    wanted = ids[:, 1:, 0].flatten()  # (rows * tokens,)
    each = cross_entropy(logits.float().flatten(0, 1), wanted, reduction="none")
    known = answers[:, 1:].flatten()  # (rows * tokens,)
    one_word = ids[:, 1:, 1].flatten() == _NOTHING  # what says several words is not predicted
    weights = known.float().clamp(min=prompt_weight) * one_word
    return (each * weights).sum() / weights.sum(), float(each[known].detach().mean())
