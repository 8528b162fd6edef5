"""The replies of an earlier run as an endpoint: prompts, parsing and rules can be tried again without a model."""

from collections.abc import Sequence
from pathlib import Path

from caldera.instructions.asking.endpoint import Reply, RequestRejected
from caldera.instructions.asking.journal import recorded_replies
from caldera.instructions.asking.prompts import Message


class ReplayClient:
    """Gives each dialogue the replies that it got before, in their order."""

    def __init__(self, path: Path) -> None:
        """Read a journal, or the one in a run's folder.

        Raises:
            InputError: It cannot be read, or holds no reply.
        """
        self._replies = {name: iter(heard) for name, heard in recorded_replies(path).items()}

    async def complete(self, name: str, messages: Sequence[Message]) -> Reply:
        """Give the next reply that was recorded.

        Raises:
            Declined: There is none.
        """
        reply = next(self._replies.get(name, iter(())), None)
        if reply is None:
            raise RequestRejected(
                "not recorded", "the journal holds no further reply", by_policy=False
            )
        return reply

    async def close(self) -> None:
        """Do nothing."""
