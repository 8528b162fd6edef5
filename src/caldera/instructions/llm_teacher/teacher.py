"""Run an LLM teacher; cost plan; run fingerprint."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pydantic import SecretStr

from caldera import __version__
from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.conversation import write_conversations
from caldera.errors import InputError, LLMClientError, UsageError
from caldera.files.atomic import lock_folder, write_json
from caldera.files.fingerprint import describe_changes, json_fingerprint
from caldera.instructions.dialogues import Dialogue, GeneratedData, Kind, count_dialogues, dialogues
from caldera.instructions.llm_teacher.collect import CollectedReplies, collect, write_side_files
from caldera.instructions.llm_teacher.prompts import TeacherPrompt, load_prompts
from caldera.instructions.llm_teacher.reply_checks import ReplyChecker
from caldera.llm_client.budget import Budget, Price, estimate_tokens, max_tokens_of
from caldera.llm_client.client import LLMClient, RequestConfig
from caldera.llm_client.journal import Journal, ReplayClient
from caldera.llm_client.openai_client import OPENAI_URL, OpenAIClient
from caldera.llm_client.runner import LLMRequest, RequestRunner, RunnerConfig
from caldera.progress import Progress

Fingerprint = dict[str, str]


def fingerprint_of(
    model: str,
    prompts: Mapping[Kind, TeacherPrompt],
    sending: RequestConfig,
    images: Iterable[AnnotatedImage],
) -> Fingerprint:
    """Gather what a reply depends on; where it is fetched from, and how fast, does not count."""
    return {
        "model": model,
        "temperature": str(sending.temperature),
        "top_p": str(sending.top_p),
        "seed": str(sending.seed),
        "max_tokens": str(sending.max_tokens),
        "max_repairs": str(sending.max_repairs),
        "annotations": _digest_of(images),
        "caldera": __version__,
        **{f"prompt of {kind}": prompt.digest for kind, prompt in prompts.items()},
    }


def digest_of(identity: Fingerprint) -> str:
    """Return twelve characters that stand for an identity."""
    return json_fingerprint(identity, 12)


def check_or_write(path: Path, identity: Fingerprint, *, allow_mixed: bool) -> None:
    """Write down who this run is, or compare with who it was.

    A kind that was not asked for before is added. What differs is refused, unless mixing is allowed; then both stand in
    the file, and every reply names its own by digest.

    Raises:
        UsageError: Something differs.
        InputError: The file is broken.
    """
    try:
        before: list[Fingerprint] = json.loads(path.read_text()) if path.exists() else []
        known = [dict[str, str](each) for each in before]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is broken ({error}); choose another --out") from error
    if identity in known:
        return
    latest = known[-1] if known else {}
    # A kind that was not requested before, or is not requested now, is no change.
    shared = latest.keys() & identity.keys()
    changes = describe_changes(
        {key: latest[key] for key in identity if key in shared},
        {key: identity[key] for key in identity if key in shared},
    )
    if changes and not allow_mixed:
        raise UsageError(
            f"{path.parent} holds replies made with other settings ({changes}); choose another --out, or mix them "
            "with --allow-mixed"
        )
    write_json(path, [*known, identity])


def _digest_of(images: Iterable[AnnotatedImage]) -> str:
    """Return twelve characters that stand for all annotations."""
    total = hashlib.sha256()
    for image in images:
        told = (image.id, image.path.name, image.captions, image.instances)
        total.update(repr(told).encode("utf-8", "surrogatepass"))
    return total.hexdigest()[:12]


LLAVA_KIND_SHARES: dict[Kind, float] = {
    "conversation": 58 / 77,
    "detail": 23 / 77,
    "reasoning": 1.0,
    "context": 23 / 77,
}
"""Shares in the proportion of LLaVA's 158,000: 58 conversations, 23 descriptions, 77 of reasoning; context, which LLaVA
has not, as often as descriptions."""

_BLOCK_SIZE = 400
"""Dialogues of which those of a kind are asked for one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMTeacherConfig:
    """A language model as teacher."""

    teacher: str = "openai"
    """A name in ENDPOINTS."""

    base_url: str = OPENAI_URL
    model: str = ""
    key: SecretStr | None = None
    prompts: Path | None = None
    """The user's own prompts; None for those shipped."""

    language: str = "english"
    sending: RequestConfig = field(default_factory=RequestConfig)
    price: Price | None = None
    no_price: bool = False
    """Whether the user said that the price does not matter."""

    max_cost: float | None = None
    max_requests: int | None = None
    allow_changed_run: bool = False
    replay_from: Path | None = None
    """For the teacher replay: a run's folder or journal."""


@dataclass(frozen=True, slots=True)
class CostEstimate:
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


def _openai(order: LLMTeacherConfig) -> LLMClient:
    """Make the openai endpoint.

    Raises:
        UsageError: No model is named, or OpenAI itself is asked without a key.
    """
    if not order.model:
        raise UsageError("the openai teacher needs the name of a model; give --model")
    if order.base_url.rstrip("/") == OPENAI_URL and not order.key:
        raise UsageError(
            "there is no key for OpenAI; set OPENAI_API_KEY, or name a server of your own with --base-url"
        )
    return OpenAIClient(order.base_url, order.model, order.key, order.sending)


def _replay(order: LLMTeacherConfig) -> LLMClient:
    """Make the replay endpoint.

    Raises:
        UsageError: No journal is given.
    """
    if order.replay_from is None:
        raise UsageError("the replay teacher needs the run that it repeats; give --recorded FOLDER")
    return ReplayClient(order.replay_from)


LLM_CLIENTS: dict[str, Callable[[LLMTeacherConfig], LLMClient]] = {
    "openai": _openai,
    "replay": _replay,
}
"""Makers of language models by exact name."""


def run_folder(out: Path) -> Path:
    """Return the folder of a data file's run: data.json -> data.run."""
    return out.with_suffix(".run")


def check_kinds(kinds: Mapping[Kind, float]) -> None:
    """Check that a language model is asked for what it can write.

    Raises:
        UsageError: A kind has no prompts.
    """
    for kind in kinds:
        if kind not in LLAVA_KIND_SHARES:
            raise UsageError(
                f"a language model writes {', '.join(LLAVA_KIND_SHARES)}, not {kind}; leave it out or use --teacher scripted"
            )


def estimate_cost(
    order: LLMTeacherConfig, annotations: AnnotationSet, kinds: Mapping[Kind, float], seed: int
) -> CostEstimate:
    """Tell what would be sent, and about what it would cost; nothing is."""
    check_kinds(kinds)
    prompts = load_prompts([*kinds], order.language, order.prompts)
    usual = {kind: _usual_reply(prompt, order.sending) for kind, prompt in prompts.items()}
    sent = replied = most_sent = 0
    for dialogue in dialogues(annotations.images, kinds, seed):
        messages = prompts[dialogue.kind].messages(dialogue.kind, dialogue.images)
        sent += sum(estimate_tokens(message["content"]) for message in messages)
        most_sent += max_tokens_of(messages)
        replied += usual[dialogue.kind]
    counts = count_dialogues(annotations.images, kinds, seed)
    most = counts.total() * order.sending.max_tokens
    price = order.price
    return CostEstimate(
        counts, sent, replied, most,
        price.of(sent, replied) if price else None, price.of(most_sent, most) if price else None,
    )  # fmt: skip


def _usual_reply(prompt: TeacherPrompt, sending: RequestConfig) -> int:
    """Estimate how many tokens a reply has, by the examples."""
    lengths = [estimate_tokens(reply) for _, reply in prompt.examples]
    return round(sum(lengths) / len(lengths)) if lengths else sending.max_tokens


@dataclass(frozen=True, slots=True)
class _DialogueSet:
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
        while some := list(islice(waiting, _BLOCK_SIZE)):
            yield from sorted(some, key=lambda dialogue: dialogue.kind)


def generate_with_llm(
    order: LLMTeacherConfig,
    annotations: AnnotationSet,
    kinds: Mapping[Kind, float],
    *,
    seed: int,
    out: Path,
    progress: Progress,
) -> GeneratedData:
    """Have a language model write a data file; started again, it goes on where it was.

    Raises:
        UsageError: The order cannot be carried out, or replies made otherwise stand where these would.
        TeacherError: The teacher or the budget ended the run; what was finished is in `out`.
        InputError: Not one reply could be used.
        OutputError: Something could not be written.
    """
    check_kinds(kinds)
    prompts = load_prompts([*kinds], order.language, order.prompts)
    _check_price(order)
    endpoint = LLM_CLIENTS[order.teacher](order)
    folder, task = run_folder(out), _DialogueSet(annotations, kinds, seed)
    model = order.model if order.teacher == "openai" else f"replay of {order.replay_from}"
    identity = fingerprint_of(model, prompts, order.sending, annotations.images)
    with lock_folder(folder):
        check_or_write(folder / "run.json", identity, allow_mixed=order.allow_changed_run)
        journal = Journal(folder / "journal.jsonl")
        try:
            means = RunnerConfig(
                endpoint=endpoint,
                request=_request_builder(prompts),
                check=ReplyChecker(annotations, prompts),
                journal=journal,
                budget=_budget(order, journal),
                sending=order.sending,
                run=digest_of(identity),
            )
            total = count_dialogues(annotations.images, kinds, seed).total()
            before = sum(journal.is_decided(dialogue.id) for dialogue in task.dialogues())
            with progress.task("asking the teacher", total, before) as tick:
                ended = asyncio.run(_write(RequestRunner(means, tick), endpoint, task))
            gathered = collect(task.dialogues(), prompts, journal, out.parent)
        finally:
            journal.close()
        write_side_files(folder, gathered)
        return _finish(gathered, ended, out, total)


async def _write(
    run: RequestRunner[Dialogue], endpoint: LLMClient, task: _DialogueSet
) -> LLMClientError | None:
    """Run to the end, and let go of the endpoint in the same loop."""
    try:
        return await run.run_all(task.in_order())
    finally:
        await endpoint.close()


def _finish(
    gathered: CollectedReplies, ended: LLMClientError | None, out: Path, total: int
) -> GeneratedData:
    """Write the data file, and say what is missing.

    Raises:
        TeacherError: The run was ended early.
        InputError: Not one reply could be used.
    """
    written = gathered.written
    if written.conversations:
        write_conversations(out, written.conversations)
    if ended:
        left = total - len(written.conversations) - written.rejected.total()
        where = f"in {out}" if written.conversations else "nothing yet"
        raise LLMClientError(
            f"{ended}; {len(written.conversations)} dialogues are kept ({where}), {left} are left: once that is "
            "mended, or with a greater budget, the same command goes on"
        )
    if not written.conversations:
        raise InputError(
            f"no reply could be used: {dict(written.rejected)}; see {run_folder(out)}/refused.jsonl and failed.jsonl"
        )
    return written


def _request_builder(prompts: Mapping[Kind, TeacherPrompt]) -> Callable[[Dialogue], LLMRequest]:
    """Return what makes the request for a dialogue."""

    def request(dialogue: Dialogue) -> LLMRequest:
        prompt = prompts[dialogue.kind]
        return LLMRequest(prompt.messages(dialogue.kind, dialogue.images), prompt.digest)

    return request


def _check_price(order: LLMTeacherConfig) -> None:
    """Refuse to spend money that nobody counts.

    Raises:
        UsageError: There is neither a price nor leave to do without.
    """
    if order.teacher == "openai" and order.price is None and not order.no_price:
        raise UsageError(
            "what the model costs is not known; give --price PROMPT,REPLY (money for a million tokens each; 0,0 for "
            "a server of your own), or --unpriced to count no money"
        )


def _budget(order: LLMTeacherConfig, journal: Journal) -> Budget:
    """Set up the limits, with what was spent before."""
    return Budget(
        price=order.price,
        max_cost=order.max_cost,
        max_requests=order.max_requests,
        spent=journal.spent,
        requests=journal.requests,
    )
