"""A model folder as what answers items: greedy or drawn, in batches of like length, or by how likely each option is."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caldera import __version__
from caldera.errors import CalderaError, InputError
from caldera.evaluation.answering.answerer import Answer, Asking, Took, letter_of
from caldera.evaluation.answering.seen_pictures import SeenPictures, blocks_of
from caldera.evaluation.benchmark import Item
from caldera.inference.generate import Generator
from caldera.inference.likelihood import AnsweredPrompt, Likelihood, Weigher
from caldera.inference.prompts import PathPrompt
from caldera.inference.sampling import Sampling
from caldera.model.folder import Assistant, load_assistant
from caldera.training.devices import Compute


class EngineAnswerer:
    """Answers with an assistant of our own."""

    def __init__(
        self, assistant: Assistant, digest: str, *, asking: Asking, compute: Compute
    ) -> None:
        """Answer with `assistant`, whose folder has this digest.

        Raises:
            UsageError: It cannot be asked in this way.
        """
        self._assistant, self._asking, self._compute = assistant, asking, compute
        self._sampling(1)  # refuses what cannot be, before anything is loaded or asked
        assistant.model.to(compute.device)
        self._seen = SeenPictures(assistant)
        self._generator = Generator(assistant, self._seen)
        self._weigher = Weigher(assistant, self._seen)
        self._digest = digest

    @property
    def identity(self) -> Mapping[str, str]:
        """Model, precision and decoding; batches too, as sums of other shapes are rounded otherwise."""
        asking, drawn = self._asking, {}
        if asking.temperature:
            drawn = {"top_p": str(asking.top_p), "seed": str(asking.seed)}
        return {
            "model": self._digest,
            "caldera": __version__,
            "template": self._assistant.card.template,
            "image mode": self._assistant.card.aspect,
            "dtype": str(self._compute.dtype).removeprefix("torch."),
            "device": self._compute.device.type,
            "temperature": str(asking.temperature),
            **drawn,
            "choose_by": asking.choose_by,
            "batch_size": str(asking.batch_size),
        }

    @property
    def facts(self) -> Mapping[str, str]:
        """The stage that wrote the model."""
        card = self._assistant.card
        return {"stage": card.stage or "joined only", "projector": card.projector}

    @property
    def deterministic(self) -> bool:
        """Whether it is greedy."""
        return self._asking.temperature == 0

    @property
    def batched(self) -> bool:
        """Always."""
        return True

    def prompt(self, item: Item, pictures: Sequence[str]) -> str:
        """Return the prompt as the model gets it, `<image>` where a picture stands.

        Raises:
            CalderaError: The template has no place for it.
        """
        return self._generator.written(item.conversation)

    def ask(
        self,
        items: Sequence[Item],
        done: Collection[str],
        took: Took,
        *,
        folder: Path,
        max_new_tokens: int,
    ) -> None:
        """Ask in batches of like length, chosen among all items whether done or not.

        Raises:
            CalderaError: The model fails.
        """
        sampling = self._sampling(max_new_tokens)
        with self._compute.autocast():
            for block in blocks_of(items, self._seen.most):
                for planned in self._batches(block):
                    batch = [item for item in planned if item.id not in done]
                    if batch:
                        took(self._answer(batch, folder, sampling))
                self._seen.forget()

    def _batches(self, block: Sequence[Item]) -> Iterator[list[Item]]:
        """Yield items of like length together, so that little is padded."""
        order = sorted(block, key=lambda item: len(self._generator.written(item.conversation)))
        for at in range(0, len(order), self._asking.batch_size):
            yield order[at : at + self._asking.batch_size]

    def _answer(self, batch: Sequence[Item], folder: Path, sampling: Sampling) -> list[Answer]:
        """Answer a batch; items that cannot be asked fail alone."""
        ready = _Ready()
        for item in batch:
            try:
                self._make_ready(item, folder, sampling, ready)
            except CalderaError as fault:
                ready.failed.append(Answer(item.id, failed=str(fault)))
        answers = ready.failed
        if ready.prompts:
            texts = self._generator.answer([prompt for _, prompt in ready.prompts], sampling)
            names = [item.id for item, _ in ready.prompts]
            answers += [Answer(name, text) for name, text in zip(names, texts, strict=True)]
        answers += [self._choose(item, options) for item, options in ready.options]
        return answers

    def _make_ready(self, item: Item, folder: Path, sampling: Sampling, ready: "_Ready") -> None:
        """Render what is asked about an item and look at its pictures.

        Raises:
            CalderaError: A picture cannot be used, or the item is too long for the model.
        """
        self._seen.see([folder / path for path in item.conversation.pictures])
        if item.choices and self._asking.choose_by != "generation":
            options = [
                letter_of(item, at) if self._asking.choose_by == "letter" else option
                for at, option in enumerate(item.choices)
            ]
            weighed = [
                self._weigher.prompt(item.conversation, option, folder) for option in options
            ]
            ready.options.append((item, weighed))
            return
        prompt = self._generator.prompt(item.conversation, folder)
        self._generator.check_fit([prompt], sampling)
        ready.prompts.append((item, prompt))

    def _choose(self, item: Item, options: Sequence[AnsweredPrompt]) -> Answer:
        """Choose the likeliest option and answer with its letter; the first of equals."""
        weights = self._weigher.weigh(options)

        def weight(one: Likelihood) -> float:
            return one.per_token if self._asking.choose_by == "option-mean" else one.total

        best = max(range(len(weights)), key=lambda at: weight(weights[at]))
        told = tuple((one.total, one.tokens) for one in weights)
        return Answer(item.id, letter_of(item, best), weights=told)

    def _sampling(self, max_new_tokens: int) -> Sampling:
        """Say how tokens are chosen.

        Raises:
            UsageError: A setting is out of its range.
        """
        asking = self._asking
        return Sampling(
            temperature=asking.temperature,
            top_p=asking.top_p,
            seed=asking.seed,
            max_new_tokens=max_new_tokens,
        )


@dataclass(slots=True)
class _Ready:
    """What of a batch can be asked, and what cannot."""

    prompts: list[tuple[Item, PathPrompt]] = field(default_factory=list)
    options: list[tuple[Item, list[AnsweredPrompt]]] = field(default_factory=list)
    failed: list[Answer] = field(default_factory=list)


def open_engine(folder: Path, *, asking: Asking, compute: Compute) -> EngineAnswerer:
    """Load a model folder to answer with.

    Raises:
        ModelFolderError: It cannot be loaded.
        UsageError: It cannot be asked in this way.
    """
    assistant = load_assistant(folder)
    return EngineAnswerer(assistant, folder_digest(folder), asking=asking, compute=compute)


def folder_digest(folder: Path) -> str:
    """Return the sha256 of all that a model folder holds: weights, settings and words.

    Raises:
        InputError: A file cannot be read.
    """
    total = hashlib.sha256()
    try:
        for file in sorted(file for file in folder.iterdir() if file.is_file()):
            with file.open("rb") as opened:
                total.update(file.name.encode() + b"\0")
                total.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; check the path") from error
    return total.hexdigest()
