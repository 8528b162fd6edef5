"""What a user orders of a language model: which one, told what, at what pace and price; and the run of that order."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import SecretStr

from caldera.annotations.annotated_image import AnnotationSet
from caldera.conversation import write_conversations
from caldera.errors import InputError, TeacherError, UsageError
from caldera.instructions.asking.budget import Budget, Price, about_tokens, most_tokens
from caldera.instructions.asking.checking import Rules
from caldera.instructions.asking.endpoint import Endpoint, Sending
from caldera.instructions.asking.gathering import Gathered, gather, write_lists
from caldera.instructions.asking.identity import claim, digest, identity_of
from caldera.instructions.asking.journal import Journal
from caldera.instructions.asking.openai_endpoint import OPENAI, OpenAIEndpoint
from caldera.instructions.asking.prompts import Prompt, read_prompts
from caldera.instructions.asking.replay import ReplayEndpoint
from caldera.instructions.asking.run import Means, Request, Run
from caldera.instructions.teacher import Kind
from caldera.instructions.writing import Dialogue, Written, count_dialogues, dialogues
from caldera.progress import Progress
from caldera.storage import holding

LLAVA_MIX: dict[Kind, float] = {
    "conversation": 58 / 77,
    "detail": 23 / 77,
    "reasoning": 1.0,
    "context": 23 / 77,
}
"""Shares in the proportion of LLaVA's 158,000: 58 conversations, 23 descriptions, 77 of reasoning; context, which LLaVA
has not, as often as descriptions."""

_TOGETHER = 400
"""Dialogues of which those of a kind are asked for one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Teaching:
    """A language model as teacher."""

    teacher: str = "openai"
    """A name in ENDPOINTS."""

    base_url: str = OPENAI
    model: str = ""
    key: SecretStr | None = None
    prompts: Path | None = None
    """The user's own prompts; None for those shipped."""

    language: str = "english"
    sending: Sending = field(default_factory=Sending)
    price: Price | None = None
    unpriced: bool = False
    """Whether the user said that the price does not matter."""

    max_cost: float | None = None
    max_requests: int | None = None
    allow_mixed: bool = False
    recorded: Path | None = None
    """For the teacher replay: a run's folder or journal."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would send."""

    dialogues: Counter[Kind]
    prompt_tokens: int
    """Estimated."""

    reply_tokens: int
    """Estimated from the examples' replies."""

    most_reply_tokens: int
    cost: float | None
    """Estimated; None where the price is not known."""

    most_cost: float | None
    """What it cannot exceed if no request is repeated."""


def _openai(order: Teaching) -> Endpoint:
    """Make the openai endpoint.

    Raises:
        UsageError: No model is named, or OpenAI itself is asked without a key.
    """
    if not order.model:
        raise UsageError("the openai teacher needs the name of a model; give --model")
    if order.base_url.rstrip("/") == OPENAI and not order.key:
        raise UsageError(
            "there is no key for OpenAI; set OPENAI_API_KEY, or name a server of your own with --base-url"
        )
    return OpenAIEndpoint(order.base_url, order.model, order.key, order.sending)


def _replay(order: Teaching) -> Endpoint:
    """Make the replay endpoint.

    Raises:
        UsageError: No journal is given.
    """
    if order.recorded is None:
        raise UsageError("the replay teacher needs the run that it repeats; give --recorded FOLDER")
    return ReplayEndpoint(order.recorded)


ENDPOINTS: dict[str, Callable[[Teaching], Endpoint]] = {"openai": _openai, "replay": _replay}
"""Makers of language models by exact name."""


def run_folder(out: Path) -> Path:
    """Return the folder of a data file's run: data.json -> data.run."""
    return out.with_suffix(".run")


def teachable(kinds: Mapping[Kind, float]) -> None:
    """Check that a language model is asked for what it can write.

    Raises:
        UsageError: A kind has no prompts.
    """
    for kind in kinds:
        if kind not in LLAVA_MIX:
            raise UsageError(
                f"a language model writes {', '.join(LLAVA_MIX)}, not {kind}; leave it out or use --teacher scripted"
            )


def plan(
    order: Teaching, annotations: AnnotationSet, kinds: Mapping[Kind, float], seed: int
) -> Plan:
    """Tell what would be sent, and about what it would cost; nothing is."""
    teachable(kinds)
    prompts = read_prompts([*kinds], order.language, order.prompts)
    usual = {kind: _usual_reply(prompt, order.sending) for kind, prompt in prompts.items()}
    sent = replied = most_sent = 0
    for dialogue in dialogues(annotations.images, kinds, seed):
        messages = prompts[dialogue.kind].messages(dialogue.kind, dialogue.images)
        sent += sum(about_tokens(message["content"]) for message in messages)
        most_sent += most_tokens(messages)
        replied += usual[dialogue.kind]
    counts = count_dialogues(annotations.images, kinds, seed)
    most = counts.total() * order.sending.max_tokens
    price = order.price
    return Plan(
        counts, sent, replied, most,
        price.of(sent, replied) if price else None, price.of(most_sent, most) if price else None,
    )  # fmt: skip


def _usual_reply(prompt: Prompt, sending: Sending) -> int:
    """Estimate how many tokens a reply has, by the examples."""
    lengths = [about_tokens(reply) for _, reply in prompt.examples]
    return round(sum(lengths) / len(lengths)) if lengths else sending.max_tokens


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be written."""

    annotations: AnnotationSet
    kinds: Mapping[Kind, float]
    seed: int

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield every dialogue, fresh."""
        return dialogues(self.annotations.images, self.kinds, self.seed)

    def in_order(self) -> Iterator[Dialogue]:
        """Yield every dialogue, hundreds at a time with those of a kind together.

        They share the beginning of their requests, which a server may keep; a run that ends early still has every kind.
        """
        waiting = self.dialogues()
        while some := list(islice(waiting, _TOGETHER)):
            yield from sorted(some, key=lambda dialogue: dialogue.kind)


def teach(
    order: Teaching,
    annotations: AnnotationSet,
    kinds: Mapping[Kind, float],
    *,
    seed: int,
    out: Path,
    progress: Progress,
) -> Written:
    """Have a language model write a data file; started again, it goes on where it was.

    Raises:
        UsageError: The order cannot be carried out, or replies made otherwise stand where these would.
        TeacherError: The teacher or the budget ended the run; what was finished is in `out`.
        InputError: Not one reply could be used.
        OutputError: Something could not be written.
    """
    teachable(kinds)
    prompts = read_prompts([*kinds], order.language, order.prompts)
    _check_price(order)
    endpoint = ENDPOINTS[order.teacher](order)
    folder, task = run_folder(out), _Task(annotations, kinds, seed)
    model = order.model if order.teacher == "openai" else f"replay of {order.recorded}"
    identity = identity_of(model, prompts, order.sending, annotations.images)
    with holding(folder):
        claim(folder / "run.json", identity, allow_mixed=order.allow_mixed)
        journal = Journal(folder / "journal.jsonl")
        try:
            means = Means(
                endpoint=endpoint,
                request=_requester(prompts),
                check=Rules(annotations, prompts),
                journal=journal,
                budget=_budget(order, journal),
                sending=order.sending,
                run=digest(identity),
            )
            total = count_dialogues(annotations.images, kinds, seed).total()
            before = sum(journal.decided(dialogue.id) for dialogue in task.dialogues())
            with progress.job("asking the teacher", total, before) as tick:
                ended = asyncio.run(_write(Run(means, tick), endpoint, task))
            gathered = gather(task.dialogues(), prompts, journal, out.parent)
        finally:
            journal.close()
        write_lists(folder, gathered)
        return _finish(gathered, ended, out, total)


async def _write(run: Run[Dialogue], endpoint: Endpoint, task: _Task) -> TeacherError | None:
    """Run to the end, and let go of the endpoint in the same loop."""
    try:
        return await run.write(task.in_order())
    finally:
        await endpoint.close()


def _finish(gathered: Gathered, ended: TeacherError | None, out: Path, total: int) -> Written:
    """Write the data file, and say what is missing.

    Raises:
        TeacherError: The run was ended early.
        InputError: Not one reply could be used.
    """
    written = gathered.written
    if written.conversations:
        write_conversations(out, written.conversations)
    if ended:
        left = total - len(written.conversations) - written.refused.total()
        where = f"in {out}" if written.conversations else "nothing yet"
        raise TeacherError(
            f"{ended}; {len(written.conversations)} dialogues are kept ({where}), {left} are left: once that is "
            "mended, or with a greater budget, the same command goes on"
        )
    if not written.conversations:
        raise InputError(
            f"no reply could be used: {dict(written.refused)}; see {run_folder(out)}/refused.jsonl and failed.jsonl"
        )
    return written


def _requester(prompts: Mapping[Kind, Prompt]) -> Callable[[Dialogue], Request]:
    """Return what makes the request for a dialogue."""

    def request(dialogue: Dialogue) -> Request:
        prompt = prompts[dialogue.kind]
        return Request(prompt.messages(dialogue.kind, dialogue.images), prompt.digest)

    return request


def _check_price(order: Teaching) -> None:
    """Refuse to spend money that nobody counts.

    Raises:
        UsageError: There is neither a price nor leave to do without.
    """
    if order.teacher == "openai" and order.price is None and not order.unpriced:
        raise UsageError(
            "what the model costs is not known; give --price PROMPT,REPLY (money for a million tokens each; 0,0 for "
            "a server of your own), or --unpriced to count no money"
        )


def _budget(order: Teaching, journal: Journal) -> Budget:
    """Set up the limits, with what was spent before."""
    return Budget(
        price=order.price,
        max_cost=order.max_cost,
        max_requests=order.max_requests,
        spent=journal.spent,
        requests=journal.requests,
    )
