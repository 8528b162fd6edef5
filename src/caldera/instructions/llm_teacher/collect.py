"""Journal to data file; near-duplicates.

Two texts are near duplicates if four fifths of all runs of three words in either are in both. A text is compared with
those that share one of a few run hashes, the ones that the fewest texts have: a run that all have ("what is the") would
make every text a candidate, and a hundred thousand are not to be compared with each other.
"""

import json
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caldera.files.atomic import write_atomic
from caldera.instructions.dialogues import Dialogue, GeneratedData, Kind
from caldera.instructions.llm_teacher.prompts import TeacherPrompt
from caldera.instructions.llm_teacher.reply_checks import all_texts, parse_checked_reply
from caldera.llm_client.client import RejectedReply
from caldera.llm_client.journal import Journal, ReceivedReply

_MIN_JACCARD = 0.8
_SKETCH_SIZE, _LOOKUPS = 8, 4
"""A text is kept under so many of its smallest run hashes, and looked for under so many of those, the rarest."""

_MIN_SHINGLES = 12
"""Words below which only equal texts count: short ones are alike by nature."""


class NearDuplicateIndex:
    """Remembers texts, and finds the first that a new one nearly repeats."""

    def __init__(self) -> None:
        """Begin without any."""
        self._runs: list[NDArray[np.uint32]] = []
        self._names: list[str] = []
        self._with: dict[int, list[int]] = defaultdict(list)
        self.compared = 0
        """Pairs of texts that had to be compared."""

    def find(self, name: str, text: str) -> str | None:
        """Return the name of an earlier text that this one nearly repeats, else remember it and return None."""
        words = re.findall(r"\w+", re.sub(r"([\u2e80-\uffff])", r" \1 ", text.casefold()))
        length = 3 if len(words) >= _MIN_SHINGLES else max(1, len(words))
        runs = {
            zlib.crc32(" ".join(words[at : at + length]).encode())
            for at in range(max(1, len(words) - length + 1))
        }
        sketch = sorted(runs)[:_SKETCH_SIZE]
        array = np.array(sorted(runs), dtype=np.uint32)
        rarest = sorted(sketch, key=lambda mark: len(self._with[mark]))[:_LOOKUPS]
        for earlier in sorted({index for mark in rarest for index in self._with[mark]}):
            if not _MIN_JACCARD <= len(array) / len(self._runs[earlier]) <= 1 / _MIN_JACCARD:
                continue
            self.compared += 1
            shared = len(np.intersect1d(array, self._runs[earlier], assume_unique=True))
            if shared >= _MIN_JACCARD * (len(array) + len(self._runs[earlier]) - shared):
                return self._names[earlier]
        for mark in sketch:
            self._with[mark].append(len(self._names))
        self._runs.append(array)
        self._names.append(name)
        return None


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
