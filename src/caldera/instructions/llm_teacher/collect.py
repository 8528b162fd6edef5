"""Journal to data file, without near duplicates.

Two texts are near duplicates if the Jaccard similarity of their 3-grams of words is at least 0.8. A text is compared
only with those that share one of its least frequent hashes: a frequent 3-gram ("what is the") would make every text a
candidate, and a hundred thousand texts cannot all be compared with each other.
"""

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caldera.conversation import is_valid_utf8
from caldera.files.atomic import write_atomic
from caldera.instructions.dialogues import Dialogue, GeneratedData, Kind
from caldera.instructions.llm_teacher.prompts import TeacherPrompt
from caldera.instructions.llm_teacher.reply_checks import all_texts, parse_checked_reply
from caldera.llm_client.client import RejectedReply
from caldera.llm_client.journal import Journal, ReceivedReply

_MIN_JACCARD = 0.8
_SKETCH_SIZE, _LOOKUPS = 8, 4
"""Each text is indexed by this many of its smallest hashes, and compared with texts that share its rarest ones."""

_MIN_WORDS = 12
"""Words below which only equal texts are duplicates: short texts are similar by nature."""


class NearDuplicateIndex:
    """Index of texts that finds near duplicates of a new one."""

    def __init__(self) -> None:
        self._shingles: list[NDArray[np.uint32]] = []
        self._names: list[str] = []
        self._by_hash: dict[int, list[int]] = defaultdict(list)
        self.compared = 0
        """Pairs of texts that were compared."""

    def find(self, name: str, text: str) -> str | None:
        """Return the name of an earlier near duplicate; if there is none, add the text and return None."""
        words = re.findall(r"\w+", re.sub(r"([\u2e80-\uffff])", r" \1 ", text.casefold()))
        length = 3 if len(words) >= _MIN_WORDS else max(1, len(words))
        hashes = sorted(
            {
                zlib.crc32(" ".join(words[start : start + length]).encode())
                for start in range(max(1, len(words) - length + 1))
            }
        )
        sketch, shingles = hashes[:_SKETCH_SIZE], np.array(hashes, dtype=np.uint32)
        rarest = sorted(sketch, key=lambda value: len(self._by_hash[value]))[:_LOOKUPS]
        for candidate in sorted({index for value in rarest for index in self._by_hash[value]}):
            other = self._shingles[candidate]
            if not _MIN_JACCARD <= len(shingles) / len(other) <= 1 / _MIN_JACCARD:
                continue
            self.compared += 1
            num_shared = len(np.intersect1d(shingles, other, assume_unique=True))
            if num_shared >= _MIN_JACCARD * (len(shingles) + len(other) - num_shared):
                return self._names[candidate]
        for value in sketch:
            self._by_hash[value].append(len(self._names))
        self._shingles.append(shingles)
        self._names.append(name)
        return None


Line = dict[str, Any]


@dataclass(slots=True)
class CollectedReplies:
    """Conversations and side files of a journal."""

    data: GeneratedData = field(default_factory=GeneratedData)
    provenance: list[Line] = field(default_factory=list)
    """For each record: images, model, digests of prompt and run, number of replies."""

    rejected: list[Line] = field(default_factory=list)
    """Rejected replies, with the rule that they break."""

    failed: list[Line] = field(default_factory=list)
    """Dialogues without a reply, with the reason."""

    seen: dict[Kind, NearDuplicateIndex] = field(
        default_factory=lambda: defaultdict(NearDuplicateIndex)
    )
    """Accepted texts of each kind."""


def collect(
    dialogues: Iterable[Dialogue],
    prompts: Mapping[Kind, TeacherPrompt],
    journal: Journal,
    relative_to: Path,
) -> CollectedReplies:
    """Build conversations of all accepted replies, in the order of the dialogues."""
    collected = CollectedReplies()
    for dialogue in dialogues:
        entry = journal.entries.get(dialogue.id)
        if entry is None or entry.outcome is None:
            continue
        labels: Line = {"id": dialogue.id, "kind": dialogue.kind}
        if entry.outcome == "failed":
            collected.failed.append({**labels, "rule": entry.rule, "reason": entry.detail})
            collected.data.rejected[f"{dialogue.kind}: {entry.rule}"] += 1
            continue
        replies = journal.replies(dialogue.id)
        try:
            if entry.outcome == "rejected":
                raise RejectedReply(entry.rule, entry.detail)
            _add_reply(collected, dialogue, replies, prompts, relative_to)
        except RejectedReply as rejection:
            reply = replies[-1].reply.text if replies else ""
            reason = {"rule": rejection.rule, "reason": rejection.detail}
            collected.rejected.append({**labels, **reason, "reply": reply})
            collected.data.rejected[f"{dialogue.kind}: {rejection.rule}"] += 1
    return collected


def _add_reply(
    collected: CollectedReplies,
    dialogue: Dialogue,
    replies: list[ReceivedReply],
    prompts: Mapping[Kind, TeacherPrompt],
    relative_to: Path,
) -> None:
    """Add a conversation and its provenance; reject near duplicates and what the current rules do not allow."""
    last = replies[-1]
    requests = prompts[dialogue.kind].questions or ("",)
    exchanges = parse_checked_reply(
        dialogue.kind, last.reply, lambda: dialogue.rng.choice(requests)
    )
    texts = [text for text in all_texts(exchanges) if text not in requests]
    if earlier := collected.seen[dialogue.kind].find(dialogue.id, "\n".join(texts)):
        raise RejectedReply("near-duplicate", f"of {earlier}")
    collected.data.conversations.append(dialogue.to_conversation(exchanges, relative_to))
    collected.data.by_kind[dialogue.kind] += 1
    collected.provenance.append(
        {
            "id": dialogue.id,
            "kind": dialogue.kind,
            "source": [image.id for image in dialogue.images],
            "teacher": last.reply.model,
            "prompt": last.prompt,
            "run": last.run,
            "replies": len(replies),
        }
    )


def write_side_files(folder: Path, collected: CollectedReplies) -> None:
    """Write `provenance.jsonl`, `rejected.jsonl` and `failed.jsonl`, each atomically."""
    files = {
        "provenance": collected.provenance,
        "rejected": collected.rejected,
        "failed": collected.failed,
    }
    for name, lines in files.items():
        write_atomic(folder / f"{name}.jsonl", map(_json_line, lines))
    # Version 0.1 listed rejected replies in this file, which would be out of date now.
    (folder / "refused.jsonl").unlink(missing_ok=True)


def _json_line(line: Line) -> str:
    """Return a line of JSON; a lone surrogate, which a reply may contain, is escaped."""
    text = json.dumps(line, ensure_ascii=False)
    return f"{text if is_valid_utf8(text) else json.dumps(line)}\n"
