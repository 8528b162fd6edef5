"""A journal in, the data file out, with a line for every dialogue: where it came from, or why it is not there."""

import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caldera.instructions.asking.checking import all_texts, parse_checked_reply
from caldera.instructions.asking.duplicates import NearDuplicateIndex
from caldera.instructions.asking.journal import Journal, ReceivedReply
from caldera.instructions.asking.parsing import RejectedReply
from caldera.instructions.asking.prompts import TeacherPrompt
from caldera.instructions.teacher import Kind
from caldera.instructions.writing import Dialogue, GeneratedData
from caldera.storage import write_atomic

Line = dict[str, Any]


@dataclass(slots=True)
class CollectedReplies:
    """What a journal came to."""

    written: GeneratedData = field(default_factory=GeneratedData)
    provenance: list[Line] = field(default_factory=list)
    """For each record of the data file: images, model, digests of prompt and run, whether it was repaired."""

    refused: list[Line] = field(default_factory=list)
    """Replies that are not used, with the rule they break."""

    failed: list[Line] = field(default_factory=list)
    """Dialogues without a reply, with the reason."""

    seen: dict[Kind, NearDuplicateIndex] = field(
        default_factory=lambda: defaultdict(NearDuplicateIndex)
    )
    """What was kept before, of each kind."""


def collect(
    dialogues: Iterable[Dialogue],
    prompts: Mapping[Kind, TeacherPrompt],
    journal: Journal,
    beside: Path,
) -> CollectedReplies:
    """Make conversations of every reply that was kept, in the order of the dialogues, however they came in.

    Args:
        dialogues: All that are asked for; others in the journal are passed over.
        prompts: Whose requests for a description are drawn from.
        journal: What the run did.
        beside: Folder of the data file.
    """
    gathered = CollectedReplies()
    for dialogue in dialogues:
        entry = journal.entries.get(dialogue.id)
        if entry is None or entry.outcome is None:
            continue
        who: Line = {"id": dialogue.id, "kind": dialogue.kind}
        if entry.outcome == "failed":
            gathered.failed.append({**who, "rule": entry.rule, "reason": entry.detail})
            gathered.written.rejected[f"{dialogue.kind}: {entry.rule}"] += 1
            continue
        heard = journal.replies(dialogue.id)
        try:
            if entry.outcome == "rejected":
                raise RejectedReply(entry.rule, entry.detail)
            _add_reply(gathered, dialogue, heard, prompts, beside)
        except RejectedReply as refusal:
            reply = heard[-1].reply.text if heard else ""
            told = str(refusal).removeprefix(refusal.rule).removeprefix(": ")
            gathered.refused.append({**who, "rule": refusal.rule, "reason": told, "reply": reply})
            gathered.written.rejected[f"{dialogue.kind}: {refusal.rule}"] += 1
    return gathered


def _add_reply(
    gathered: CollectedReplies,
    dialogue: Dialogue,
    heard: list[ReceivedReply],
    prompts: Mapping[Kind, TeacherPrompt],
    beside: Path,
) -> None:
    """Add one conversation, and where it came from.

    Raises:
        ReplyRefusal: It nearly repeats an earlier one, or does not stand up to the rules as they are now.
    """
    last = heard[-1]
    requests = prompts[dialogue.kind].questions or ("",)
    exchanges = parse_checked_reply(
        dialogue.kind, last.reply, lambda: _pick_request(requests, dialogue.rng)
    )
    told = [text for text in all_texts(exchanges) if text not in requests]
    if earlier := gathered.seen[dialogue.kind].find(dialogue.id, "\n".join(told)):
        raise RejectedReply("near-duplicate", f"of {earlier}")
    gathered.written.conversations.append(dialogue.conversation(exchanges, beside))
    gathered.written.by_kind[dialogue.kind] += 1
    gathered.provenance.append(
        {
            "id": dialogue.id,
            "kind": dialogue.kind,
            "source": [image.id for image in dialogue.images],
            "teacher": last.reply.model,
            "prompt": last.prompt,
            "run": last.run,
            "replies": len(heard),
        }
    )


def _pick_request(requests: tuple[str, ...], rng: random.Random) -> str:
    """Draw a request for a description."""
    return rng.choice(requests)


def write_side_files(folder: Path, gathered: CollectedReplies) -> None:
    """Write `provenance.jsonl`, `refused.jsonl` and `failed.jsonl`, each whole.

    Raises:
        OutputError: One could not be written.
    """
    lists = {
        "provenance": gathered.provenance,
        "rejected": gathered.refused,
        "failed": gathered.failed,
    }
    for name, lines in lists.items():
        write_atomic(folder / f"{name}.jsonl", "".join(_as_lines(lines)))


def _as_lines(lines: Iterable[Line]) -> Iterator[str]:
    """Yield lines of JSON; half a character, which a reply may hold, is written as its escape."""
    for line in lines:
        text = json.dumps(line, ensure_ascii=False)
        try:
            text.encode()
        except UnicodeEncodeError:
            text = json.dumps(line)
        yield f"{text}\n"
