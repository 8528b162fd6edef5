"""No order of replies exceeds a limit; estimates bound the token counts of real tokenizers."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.errors import UsageError
from caldera.instructions.llm_teacher.prompts import LANGUAGES, load_prompts
from caldera.llm_client.budget import (
    Budget,
    Price,
    estimate_tokens,
    max_tokens_of,
    parse_price,
)
from caldera.llm_client.client import Reply
from tests.real_tokenizers import TOKENIZERS, make_tokenizer


@given(st.floats(0.0001, 0.01), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**30))
def test_no_order_of_replies_exceeds_the_budget(
    max_cost: float, max_requests: int, num_workers: int, seed: int
) -> None:
    """Concurrent workers reserve, commit what they used, and stop when no further request fits."""
    rng = random.Random(seed)
    price = Price(3.0, 5.0)
    budget = Budget(price=price, max_cost=max_cost, max_requests=max_requests)

    async def work() -> None:
        while (reserved := await budget.reserve(100, 50)) is not None:
            assert budget.spent + budget._reserved <= max_cost + 1e-9
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            reply = Reply("", "stop", rng.randrange(101), rng.randrange(51))
            budget.commit(reserved, budget.cost_of(reply, reserved))

    async def run_workers() -> None:
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(num_workers))), 20)

    asyncio.run(run_workers())
    assert budget.spent <= max_cost + 1e-9
    assert budget.requests <= max_requests
    assert budget.requests == max_requests or budget.spent + price.cost(100, 50) > max_cost


def test_requests_of_earlier_starts_count() -> None:
    """A resumed run has the rest of its budget."""
    budget = Budget(max_requests=7, requests=7)
    assert asyncio.run(budget.reserve(1, 1)) is None


def test_a_reply_without_usage_costs_its_reservation() -> None:
    """An endpoint that reports no token counts is charged the maximum."""
    budget = Budget(price=Price(1.0, 2.0))
    assert budget.cost_of(Reply("", "stop"), 0.5) == 0.5
    assert budget.cost_of(Reply("", "stop", 1_000_000, 500_000), 9.0) == 2.0


def test_a_maximum_cost_needs_a_price() -> None:
    """Without one no cost could be counted."""
    with pytest.raises(UsageError, match="--max-cost needs --price"):
        Budget(max_cost=1.0)


@pytest.mark.parametrize("text", ["1", "a,b", "1,2,3", "-1,2", "nan,1", "inf,1", ""])
def test_a_price_is_two_numbers(text: str) -> None:
    """Anything else is an error."""
    with pytest.raises(UsageError, match="--price"):
        parse_price(text)
    assert parse_price("0.15,0.6") == Price(0.15, 0.6)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_token_bound_holds_for_real_tokenizers(language: str) -> None:
    """No prompt has more tokens than are reserved for it."""
    prompts = load_prompts(["conversation", "detail"], language)
    tokenizer = make_tokenizer(next(iter(TOKENIZERS)))
    for prompt in prompts.values():
        messages = [{"role": "system", "content": prompt.system}]
        assert len(tokenizer(prompt.system)["input_ids"]) <= max_tokens_of(messages)
        assert estimate_tokens(prompt.system) < max_tokens_of(messages)
