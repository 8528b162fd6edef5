"""What a run may spend: each request reserves the most it can cost before it is sent, so no limit is ever passed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from caldera.errors import UsageError
from caldera.llm_client.client import Message, Reply

cached = lru_cache(maxsize=1024)
"""A run counts the same system messages and examples for every request."""

_MESSAGE = 16
"""Tokens that a message's frame takes at most, beyond its text."""


@dataclass(frozen=True, slots=True)
class Price:
    """Money for a million tokens."""

    prompt: float
    reply: float

    def of(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return what so many tokens cost."""
        return (self.prompt * prompt_tokens + self.reply * reply_tokens) / 1_000_000


def parse_price(text: str) -> Price:
    """Read a price: '0.15,0.60' is what a million tokens of prompts and of replies cost.

    Raises:
        UsageError: It is not two numbers, or one is negative.
    """
    try:
        prompt, reply = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"--price {text} is not two numbers; write PROMPT,REPLY for a million tokens each, such as 0.15,0.60"
        ) from None
    if not (0 <= prompt < float("inf") and 0 <= reply < float("inf")):
        raise UsageError(f"--price {text} is no price; both numbers must be 0 or more")
    return Price(prompt, reply)


def max_tokens_of(messages: Sequence[Message]) -> int:
    """Bound the tokens of a prompt from above: no tokenizer makes more tokens than there are bytes."""
    return sum(_bytes(message["content"]) + _MESSAGE for message in messages)


@cached
def _bytes(text: str) -> int:
    """Count the bytes of a text in UTF-8; half a character counts as three."""
    return len(text.encode("utf-8", "surrogatepass"))


@cached
def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: a quarter of its letters in Latin script, one for each Chinese character."""
    wide = sum(ord(char) >= 0x2E80 for char in text)
    return round(wide + (len(text) - wide) / 4) + 4


class Budget:
    """Counts requests and money, spent and reserved."""

    def __init__(
        self,
        *,
        price: Price | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
        spent: float = 0.0,
        requests: int = 0,
    ) -> None:
        """Set the limits, and what earlier starts of the run have spent.

        Raises:
            UsageError: A cost is limited but the price is unknown.
        """
        if max_cost is not None and price is None:
            raise UsageError("--max-cost needs --price PROMPT,REPLY, money for a million tokens")
        self._price = price or Price(0.0, 0.0)
        self._max_cost, self._max_requests = max_cost, max_requests
        self.spent, self.requests = spent, requests
        self._reserved = 0.0
        self._under_way = 0
        self._settled = asyncio.Event()

    @property
    def counts_money(self) -> bool:
        """Whether a request costs anything."""
        return self._price != Price(0.0, 0.0)

    async def reserve(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """Reserve the most that a request can cost, waiting for others to settle where that may make room.

        Returns:
            What was reserved; None where the budget does not hold another request.
        """
        cost = self._price.of(prompt_tokens, reply_tokens)
        while not self._fits(cost):
            if not self._under_way:
                return None
            if self._max_requests is not None and self.requests >= self._max_requests:
                return None
            self._settled.clear()
            await self._settled.wait()
        self._reserved += cost
        self._under_way += 1
        self.requests += 1
        return cost

    def commit(self, reserved: float, cost: float) -> None:
        """Put what a request did cost in the place of what was reserved for it."""
        self._under_way -= 1
        self._reserved = self._reserved - reserved if self._under_way else 0.0
        self.spent += cost
        self._settled.set()

    def release(self, reserved: float) -> None:
        """Give back what was reserved for a request that was never sent."""
        self.commit(reserved, 0.0)
        self.requests -= 1

    def cost_of(self, reply: Reply, reserved: float) -> float:
        """Return what a reply cost by the endpoint's count of tokens; all that was reserved where it did not count."""
        if reply.prompt_tokens is None or reply.reply_tokens is None:
            return reserved
        return self._price.of(reply.prompt_tokens, reply.reply_tokens)

    def _fits(self, cost: float) -> bool:
        """Tell whether another request of this cost stays within both limits."""
        if self._max_requests is not None and self.requests >= self._max_requests:
            return False
        return (
            self._max_cost is None or self.spent + self._reserved + cost <= self._max_cost + 1e-12
        )
