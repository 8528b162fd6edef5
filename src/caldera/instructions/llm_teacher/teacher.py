"""LLM teacher: configuration, cost estimate, run fingerprint, and the run itself."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from pydantic import SecretStr

from caldera import __version__
from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet
from caldera.conversation import write_conversations
from caldera.errors import InputError, Interrupted, LLMClientError, UsageError
from caldera.files.atomic import lock_folder, write_json
from caldera.files.fingerprint import describe_changes, json_fingerprint
from caldera.instructions.dialogues import (
    Dialogue,
    GeneratedData,
    Kind,
    count_dialogues,
    plan_dialogues,
)
from caldera.instructions.llm_teacher.collect import CollectedReplies, collect, write_side_files
from caldera.instructions.llm_teacher.prompts import (
    KINDS_WITHOUT_BOXES,
    TeacherPrompt,
    load_prompts,
)
from caldera.instructions.llm_teacher.reply_checks import reply_checker
from caldera.interruption import deferred_signals
from caldera.llm_client.budget import Budget, Price, estimate_tokens, max_tokens_of
from caldera.llm_client.client import LLMClient, RequestConfig
from caldera.llm_client.journal import Journal, ReplayClient
from caldera.llm_client.openai_client import OPENAI_URL, OpenAIClient
from caldera.llm_client.runner import LLMRequest, RequestRunner, RunnerConfig
from caldera.overrides import with_current_names
from caldera.progress import Progress

Fingerprint = dict[str, str]

LLAVA_KIND_SHARES: dict[Kind, float] = {
    "conversation": 58 / 77,
    "detail": 23 / 77,
    "reasoning": 1.0,
    "context": 23 / 77,
}
"""Shares in the proportions of LLaVA's 158,000: 58 conversations, 23 descriptions, 77 of reasoning; context, which
LLaVA does not have, as often as descriptions."""

_BLOCK_SIZE = 400
"""Dialogues within which those of a kind are requested in a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMTeacherConfig:
    """Model, prompts, request settings and budget of an LLM teacher."""

    teacher: str = "openai"
    """A name in LLM_CLIENTS."""

    base_url: str = OPENAI_URL
    model: str = ""
    key: SecretStr | None = None
    prompts: Path | None = None
    """The user's own prompts; None: the packaged ones."""

    language: str = "english"
    request_config: RequestConfig = field(default_factory=RequestConfig)
    price: Price | None = None
    no_price: bool = False
    """Allow requests without a price."""

    max_cost: float | None = None
    max_requests: int | None = None
    allow_changed_run: bool = False
    """Resume a run whose model, parameters, prompts or annotations were others."""

    replay_from: Path | None = None
    """Run folder or journal for the teacher `replay`."""


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Estimated requests, tokens and cost of a run."""

    dialogues: Counter[Kind]
    prompt_tokens: int
    reply_tokens: int
    """Estimated from the replies of the examples."""

    max_reply_tokens: int
    cost: float | None
    """None if the price is unknown."""

    max_cost: float | None
    """Upper bound if no request is repeated."""


def fingerprint_of(
    model: str,
    prompts: Mapping[Kind, TeacherPrompt],
    config: RequestConfig,
    images: Iterable[AnnotatedImage],
) -> Fingerprint:
    """Return everything that replies depend on; address and speed are not part of it."""
    return {
        "model": model,
        "temperature": str(config.temperature),
        "top_p": str(config.top_p),
        "seed": str(config.seed),
        "max_tokens": str(config.max_tokens),
        "max_repairs": str(config.max_repairs),
        "annotations": _digest_of_images(images),
        "caldera": __version__,
        **{f"prompt of {kind}": prompt.digest for kind, prompt in prompts.items()},
    }


def _digest_of_images(images: Iterable[AnnotatedImage]) -> str:
    """Return a digest of all annotations."""
    digest = hashlib.sha256()
    for image in images:
        content = repr((image.id, image.path.name, image.captions, image.instances))
        # Version 0.1 called the field `crowd`; its digests stay valid.
        content = content.replace(", is_crowd=", ", crowd=")
        digest.update(content.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:12]


def check_or_write(path: Path, fingerprint: Fingerprint, *, allow_changed_run: bool) -> str:
    """Compare a run's fingerprint with the stored ones, add it if it is new, and return its digest.

    Changed values are an error unless `allow_changed_run`; then the file holds both fingerprints, and every reply names
    its own by digest. The prompt of another kind is no change, nor is another version of caldera.
    """
    try:
        content: list[Fingerprint] = json.loads(path.read_text()) if path.exists() else []
        stored = [dict[str, str](entry) for entry in content]
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is invalid ({error}); choose another --out") from error
    current: list[Fingerprint] = with_current_names(stored)
    if fingerprint in current:
        return json_fingerprint(stored[current.index(fingerprint)], 12)
    latest = current[-1] if current else {}
    compared = (fingerprint.keys() & latest.keys()) - {"caldera"}
    changes = describe_changes(
        {key: latest[key] for key in fingerprint if key in compared},
        {key: fingerprint[key] for key in fingerprint if key in compared},
    )
    if changes and not allow_changed_run:
        raise UsageError(
            f"{path.parent} has replies made with other settings ({changes}); choose another --out, or mix them with "
            "--allow-changed-run"
        )
    write_json(path, [*stored, fingerprint])
    return json_fingerprint(fingerprint, 12)


def _openai_client(config: LLMTeacherConfig) -> LLMClient:
    """Return a client of an OpenAI-compatible server."""
    if not config.model:
        raise UsageError("the openai teacher needs the name of a model; pass --model")
    if config.base_url.rstrip("/") == OPENAI_URL and not config.key:
        raise UsageError(
            "there is no API key for OpenAI; set OPENAI_API_KEY, or pass the address of your own server with --base-url"
        )
    return OpenAIClient(config.base_url, config.model, config.key, config.request_config)


def _replay_client(config: LLMTeacherConfig) -> LLMClient:
    """Return a client that replays an earlier run."""
    if config.replay_from is None:
        raise UsageError("the replay teacher needs an earlier run; pass --replay-from FOLDER")
    return ReplayClient(config.replay_from)


LLM_CLIENTS: dict[str, Callable[[LLMTeacherConfig], LLMClient]] = {
    "openai": _openai_client,
    "replay": _replay_client,
}
"""Constructors of LLM clients, by exact name."""


def run_folder(out: Path) -> Path:
    """Return the run folder of a data file: data.json -> data.run."""
    return out.with_suffix(".run")


def check_kinds(kinds: Mapping[Kind, float]) -> None:
    """Raise UsageError for a kind without prompts."""
    for kind in kinds:
        if kind not in LLAVA_KIND_SHARES:
            raise UsageError(
                f"an LLM teacher writes {', '.join(LLAVA_KIND_SHARES)}, not {kind}; remove it or use --teacher scripted"
            )


def estimate_cost(
    config: LLMTeacherConfig, annotations: AnnotationSet, kinds: Mapping[Kind, float], seed: int
) -> CostEstimate:
    """Estimate what a run would send, and its cost, without sending anything."""
    check_kinds(kinds)
    prompts = load_prompts([*kinds], config.language, config.prompts)
    mean_reply = {kind: _mean_reply_tokens(prompt, config) for kind, prompt in prompts.items()}
    counts = Counter[Kind]()
    prompt_tokens = max_prompt_tokens = reply_tokens = 0
    for dialogue in _plan_answerable(annotations, kinds, seed):
        messages = prompts[dialogue.kind].messages(dialogue.kind, dialogue.images)
        counts[dialogue.kind] += 1
        prompt_tokens += sum(estimate_tokens(message["content"]) for message in messages)
        max_prompt_tokens += max_tokens_of(messages)
        reply_tokens += mean_reply[dialogue.kind]
    max_reply_tokens = counts.total() * config.request_config.max_tokens
    price = config.price
    return CostEstimate(
        counts,
        prompt_tokens,
        reply_tokens,
        max_reply_tokens,
        price.cost(prompt_tokens, reply_tokens) if price else None,
        price.cost(max_prompt_tokens, max_reply_tokens) if price else None,
    )


def _plan_answerable(
    annotations: AnnotationSet, kinds: Mapping[Kind, float], seed: int
) -> Iterator[Dialogue]:
    """Yield the planned dialogues whose images have what the teacher is sent: captions, and boxes for most kinds."""
    for dialogue in plan_dialogues(annotations, kinds, seed):
        needs_boxes = annotations.categories and dialogue.kind not in KINDS_WITHOUT_BOXES
        has_all = all(
            image.captions and (image.instances or not needs_boxes) for image in dialogue.images
        )
        if has_all and (dialogue.kind != "context" or len(dialogue.images) > 1):
            yield dialogue


def _mean_reply_tokens(prompt: TeacherPrompt, config: LLMTeacherConfig) -> int:
    """Return the mean length of the examples' replies."""
    lengths = [estimate_tokens(reply) for _, reply in prompt.examples]
    return round(sum(lengths) / len(lengths)) if lengths else config.request_config.max_tokens


def generate_with_llm(
    config: LLMTeacherConfig,
    annotations: AnnotationSet,
    kinds: Mapping[Kind, float],
    *,
    seed: int,
    out: Path,
    progress: Progress,
) -> GeneratedData:
    """Write a data file with an LLM teacher; resume the run if there is one.

    If the teacher, the budget or a signal ends the run, it raises LLMClientError or Interrupted; finished dialogues are
    in `out`.
    """
    check_kinds(kinds)
    prompts = load_prompts([*kinds], config.language, config.prompts)
    if config.teacher == "openai" and config.price is None and not config.no_price:
        raise UsageError(
            "the price of the model is unknown; pass --price PROMPT,REPLY (money for a million tokens each; 0,0 for a "
            "server of your own), or --no-price to count no money"
        )
    client = LLM_CLIENTS[config.teacher](config)
    model = config.model if config.teacher == "openai" else f"replay of {config.replay_from}"
    fingerprint = fingerprint_of(model, prompts, config.request_config, annotations.images)
    # Planned anew for each use, as every dialogue has a fresh random generator.
    dialogues = partial(_plan_answerable, annotations, kinds, seed)
    folder = run_folder(out)
    with lock_folder(folder), deferred_signals():
        run = check_or_write(
            folder / "run.json", fingerprint, allow_changed_run=config.allow_changed_run
        )
        journal = Journal(folder / "journal.jsonl")
        try:
            runner_config = RunnerConfig(
                client=client,
                request=partial(_build_request, prompts),
                check=reply_checker(annotations, prompts),
                journal=journal,
                budget=_remaining_budget(config, journal),
                request_config=config.request_config,
                run=run,
            )
            total = sum(1 for _ in dialogues())
            num_decided = sum(journal.is_decided(dialogue.id) for dialogue in dialogues())
            with progress.task("asking the teacher", total, num_decided) as tick:
                stop_reason = _run(RequestRunner(runner_config, tick), client, dialogues())
            collected = collect(dialogues(), prompts, journal, out.parent)
        finally:
            journal.close()
        write_side_files(folder, collected)
        data = _finish(collected, stop_reason, out, total)
        planned = count_dialogues(annotations.images, kinds, seed).total()
        if planned > total:
            data.rejected["images without the captions or boxes that a kind needs"] = (
                planned - total
            )
        return data


def _remaining_budget(config: LLMTeacherConfig, journal: Journal) -> Budget:
    """Return the budget of a run, with what earlier starts spent."""
    return Budget(
        price=config.price,
        max_cost=config.max_cost,
        max_requests=config.max_requests,
        spent=journal.spent,
        requests=journal.requests,
    )


def _build_request(prompts: Mapping[Kind, TeacherPrompt], dialogue: Dialogue) -> LLMRequest:
    """Return the request for a dialogue."""
    prompt = prompts[dialogue.kind]
    return LLMRequest(prompt.messages(dialogue.kind, dialogue.images), prompt.digest)


def _run(
    runner: RequestRunner[Dialogue], client: LLMClient, dialogues: Iterator[Dialogue]
) -> LLMClientError | Interrupted | None:
    """Run all requests; return what ended the run early, if anything did."""

    async def run_and_close() -> LLMClientError | None:
        # The client is closed in the event loop that it was used in.
        try:
            return await runner.run_all(_sorted_in_blocks(dialogues))
        finally:
            await client.close()

    try:
        return asyncio.run(run_and_close())
    except Interrupted as interrupted:
        return interrupted


def _sorted_in_blocks(dialogues: Iterator[Dialogue]) -> Iterator[Dialogue]:
    """Yield dialogues sorted by kind within each block.

    Requests of a kind share a prefix, which a server may cache; a run that ends early still has every kind.
    """
    while block := list(islice(dialogues, _BLOCK_SIZE)):
        yield from sorted(block, key=lambda dialogue: dialogue.kind)


def _finish(
    collected: CollectedReplies,
    stop_reason: LLMClientError | Interrupted | None,
    out: Path,
    total: int,
) -> GeneratedData:
    """Write the data file; raise what ended the run early, or InputError if the file would be empty."""
    data = collected.data
    num_written = len(data.conversations)
    if data.conversations:
        write_conversations(out, data.conversations)
    if stop_reason:
        num_left = total - num_written - data.rejected.total()
        location = f"in {out}" if data.conversations else "no file yet"
        state = f"{num_written} dialogues are finished ({location}), {num_left} are left"
        if isinstance(stop_reason, Interrupted):
            raise Interrupted(
                f"stopped; {state}; repeat the command to resume", stop_reason.signal_number
            )
        raise LLMClientError(
            f"{stop_reason}; {state}: fix the cause or raise the budget, then run the same command to resume"
        )
    if not data.conversations:
        raise InputError(
            f"every reply was rejected: {dict(data.rejected)}; see {run_folder(out)}/rejected.jsonl and failed.jsonl"
        )
    return data
