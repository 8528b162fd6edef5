"""Budget of a run: each request reserves its maximum cost before it is sent, so no limit is ever exceeded."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from caldera.errors import UsageError
from caldera.llm_client.client import Message, Reply

_MESSAGE_OVERHEAD = 16
"""Maximum tokens of a message in addition to those of its text."""


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a million tokens."""

    prompt: float
    reply: float

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return the cost of a request with these token counts."""
        return (self.prompt * prompt_tokens + self.reply * reply_tokens) / 1_000_000


def parse_price(text: str) -> Price:
    """Parse a price per million prompt and reply tokens, such as '0.15,0.60'."""
    try:
        prompt, reply = map(float, text.split(","))
    except ValueError:
        raise UsageError(
            f"--price {text} is not two numbers; write PROMPT,REPLY for a million tokens each, such as 0.15,0.60"
        ) from None
    if not (0 <= prompt < float("inf") and 0 <= reply < float("inf")):
        raise UsageError(
            f"--price {text} is not a price; both numbers must be finite and 0 or more"
        )
    return Price(prompt, reply)


def max_tokens_of(messages: Sequence[Message]) -> int:
    """Return an upper bound of a prompt's tokens: no tokenizer makes more tokens than there are bytes."""
    return sum(_num_bytes(message["content"]) + _MESSAGE_OVERHEAD for message in messages)


# Cached, as all requests of a run share their system messages and examples.
@lru_cache(maxsize=1024)
def _num_bytes(text: str) -> int:
    """Count the bytes of a text in UTF-8; a lone surrogate counts as three."""
    return len(text.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=1024)
def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: a quarter of its Latin letters, one for each Chinese character."""
    num_wide = sum(ord(char) >= 0x2E80 for char in text)
    return round(num_wide + (len(text) - num_wide) / 4) + 4


class Budget:
    """Counter of requests and money, spent and reserved, with limits."""

    def __init__(
        self,
        *,
        price: Price | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
        spent: float = 0.0,
        requests: int = 0,
    ) -> None:
        """Set the limits; `spent` and `requests` are those of earlier starts of the run."""
        if max_cost is not None and price is None:
            raise UsageError("--max-cost needs --price PROMPT,REPLY, money for a million tokens")
        self._price = price or Price(0.0, 0.0)
        self._max_cost, self._max_requests = max_cost, max_requests
        self.spent, self.requests = spent, requests
        self._reserved = 0.0
        self._in_flight = 0
        self._released = asyncio.Event()

    @property
    def counts_money(self) -> bool:
        """True if requests cost money."""
        return self._price != Price(0.0, 0.0)

    async def reserve(self, prompt_tokens: int, reply_tokens: int) -> float | None:
        """Reserve the maximum cost of a request; return it, or None if the budget allows no further request.

        It waits for requests in flight if they may release enough.
        """
        cost = self._price.cost(prompt_tokens, reply_tokens)
        while not self._fits(cost):
            if not self._in_flight or self._requests_used_up():
                return None
            self._released.clear()
            await self._released.wait()
        self._reserved += cost
        self._in_flight += 1
        self.requests += 1
        return cost

    def commit(self, reserved: float, cost: float) -> None:
        """Replace the reserved cost of a request by its actual cost."""
        self._in_flight -= 1
        self._reserved = self._reserved - reserved if self._in_flight else 0.0
        self.spent += cost
        self._released.set()

    def release(self, reserved: float) -> None:
        """Release the reservation of a request that was never sent."""
        self.commit(reserved, 0.0)
        self.requests -= 1

    def cost_of(self, reply: Reply, reserved: float) -> float:
        """Return the cost of a reply by the endpoint's token counts, or `reserved` if it reported none."""
        if reply.prompt_tokens is None or reply.reply_tokens is None:
            return reserved
        return self._price.cost(reply.prompt_tokens, reply.reply_tokens)

    def _requests_used_up(self) -> bool:
        return self._max_requests is not None and self.requests >= self._max_requests

    def _fits(self, cost: float) -> bool:
        """Return whether another request of this cost stays within both limits."""
        if self._requests_used_up():
            return False
        return (
            self._max_cost is None or self.spent + self._reserved + cost <= self._max_cost + 1e-12
        )
