"""Text about scenes in, a tiny LLaMA with its own tokenizer out. It never sees a picture.

It learns in two phases: first to find things in short lists, then, with that skill, to read plans of a scene as well.
"""

import logging
import random
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
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caldera.conversation import Conversation, read_conversations
from caldera.scenes.corpus import Document, dialogue, documents, plan
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.folder import write_scenes
from caldera.scenes.kinds import COLOURS, KINDS, SETTINGS
from caldera.scenes.schedule import (
    attention,
    decaying_adamw,
    fast_products,
    half_cosine,
    save_half,
    take_step,
)
from caldera.scenes.world import Scene, draw_up

log = logging.getLogger(__name__)

START, END, UNKNOWN, PADDING = "<s>", "</s>", "<unk>", "<pad>"

_KINDS = "conversation:0.4,detail:0.2,reasoning:0.3,vqa,context:0.6"


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of the training."""

    steps: int
    plans: float
    """Share of scenes told as plans."""

    kinds: tuple[str, ...]
    """Dialogues that are read, by the end of their id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguagePretraining:
    """How the language model is trained."""

    scenes: int = 20_000
    seed: int = 8001
    """Seed of its scenes; the demo's and the vision tower's have others."""

    phases: tuple[Phase, ...] = (
        Phase(steps=600, plans=0.0, kinds=("vqa",)),
        Phase(
            steps=1900, plans=0.55, kinds=("vqa", "context", "conversation", "detail", "reasoning")
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
    heads: int = 6


def read_scenes(work: Path, count: int, seed: int) -> tuple[list[Conversation], dict[str, Scene]]:
    """Have the scripted teacher write dialogues about fresh scenes, by the command that any user calls.

    Returns:
        The dialogues, and each scene by the path of its picture.
    """
    folder, file = work / f"scenes-{seed}", work / f"dialogues-{seed}.json"
    if not folder.is_dir():
        write_scenes(folder, "train", count, seed=seed)
    if not file.is_file():
        command = ["data", "generate", "coco", str(folder), "--kinds", _KINDS, "--out", str(file)]
        subprocess.run([sys.executable, "-m", "caldera", *command, f"--seed={seed}"], check=True)
    conversations = read_conversations(file)
    paths = {path for conversation in conversations for path in conversation.pictures}
    scenes = {
        path: draw_up(int(Path(path).stem) - 1, seed=seed, split="train", shapes=glyph_shapes())
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
    for word in (*KINDS, *COLOURS, *SETTINGS):
        assert len(tokenizer.tokenize(f" {word}")) == 1, f"{word!r} should be one token"
    return tokenizer


class Reader:
    """Documents in, rows of tokens out: laid end to end and cut to one length."""

    def __init__(self, stream: Iterator[Document], tokenizer: PreTrainedTokenizerFast) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._pool: list[tuple[list[int], list[bool]]] = []

    def rows(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return ids and whether each belongs to an answer, both (count, length + 1)."""
        ids, answers = [], []
        for _ in range(count):
            row: list[int] = []
            marks: list[bool] = []
            while len(row) <= length:
                document, known = self._next()
                row += document
                marks += known
            ids.append(row[: length + 1])
            answers.append(marks[: length + 1])
        return torch.tensor(ids), torch.tensor(answers)

    def _next(self) -> tuple[list[int], list[bool]]:
        """Return one encoded document."""
        if not self._pool:
            batch = list(islice(self._stream, 64))
            self._pool = [encode(document, self._tokenizer) for document in batch]
        return self._pool.pop()


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[bool]]:
    """Return a document's ids and whether each belongs to an answer."""
    pieces = tokenizer([piece.text for piece in document], add_special_tokens=False).input_ids
    ids, answers = [tokenizer.bos_token_id], [False]
    for piece, tokens in zip(document, pieces, strict=True):
        ids += tokens
        answers += [piece.answer] * len(tokens)
    return ids, answers


@torch.no_grad()
def probe(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    scenes: dict[str, Scene],
) -> dict[str, float]:
    """Measure the share of short answers that are right word for word, on plans of scenes that were not read."""
    model.eval()
    right: dict[str, list[bool]] = defaultdict(list)
    rng = random.Random(0)
    for conversation in conversations:
        document = dialogue(conversation, scenes, end=END, plans=1.0, rng=rng)
        ids, answers = encode(document, tokenizer)
        said = model(input_ids=torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()
        kind = conversation.id.rsplit("-", 1)[1]
        start = 0
        for at in range(1, len(ids) + 1):
            ends = at == len(ids) or answers[at] != answers[at - 1]
            if ends and answers[at - 1] and start:
                right[kind].append(said[start - 1 : at - 1] == ids[start:at])
            if ends:
                start = at
    model.train()
    return {kind: round(sum(marks) / len(marks), 3) for kind, marks in right.items()}


def pretrain_language(out: Path, work: Path, settings: LanguagePretraining) -> None:
    """Train tokenizer and model and write their folder; `work` keeps the scenes and dialogues."""
    torch.manual_seed(settings.seed)
    conversations, scenes = read_scenes(work, settings.scenes, settings.seed)
    unseen, unseen_scenes = read_scenes(work, 150, settings.seed + 1)
    unseen = [one for one in unseen if one.id.endswith(("-vqa", "-context"))]
    tokenizer = train_tokenizer(_texts(conversations, scenes, settings.seed), settings.vocabulary)
    model = LlamaForCausalLM(_config(tokenizer, settings))
    optimiser = decaying_adamw(
        model, settings.learning_rate, settings.weight_decay, betas=(0.9, 0.95)
    )
    total = sum(phase.steps for phase in settings.phases)
    step, begun = 0, time.monotonic()
    for number, phase in enumerate(settings.phases):
        read = [one for one in conversations if one.id.endswith(phase.kinds)]
        stream = documents(read, scenes, end=END, plans=phase.plans, seed=settings.seed + number)
        reader = Reader(stream, tokenizer)
        for _ in range(phase.steps):
            ids, answers = reader.rows(settings.rows, settings.row_length)
            loss, answer_loss = _losses(model, ids, answers, settings.prompt_weight)
            rate = settings.learning_rate * half_cosine(step, total, settings.warmup_steps)
            take_step(loss, model, optimiser, rate)
            step += 1
            if step % 100 == 0 or step == total:
                speed = step * settings.rows * settings.row_length / (time.monotonic() - begun)
                log.info("language %5d  answers %.3f  %.0f tokens/s", step, answer_loss, speed)
            if step % 500 == 0 or step == total:
                log.info("language %5d  %s", step, probe(model, tokenizer, unseen, unseen_scenes))
                save_half(model, out)
                tokenizer.save_pretrained(out)


def _texts(
    conversations: Sequence[Conversation], scenes: dict[str, Scene], seed: int
) -> Iterator[str]:
    """Yield text for the tokenizer; every plan word is in it."""
    stream = documents(conversations, scenes, end="", plans=0.5, seed=seed)
    for document in islice(stream, 4000):
        yield "".join(piece.text for piece in document)
    rng = random.Random(seed)
    yield from (plan(scene, rng) for scene in islice(scenes.values(), 2000))


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
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config._attn_implementation = attention()
    return config


def _losses(
    model: LlamaForCausalLM, ids: Tensor, answers: Tensor, prompt_weight: float
) -> tuple[Tensor, float]:
    """Return the weighted loss, and the plain mean over answers, in nats per token."""
    with fast_products():
        logits = model(input_ids=ids[:, :-1]).logits  # (rows, tokens, vocabulary)
    each = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    known = answers[:, 1:].flatten()  # (rows * tokens,)
    weights = known.float().clamp(min=prompt_weight)
    return (each * weights).sum() / weights.sum(), float(each[known].detach().mean())
