"""Tests of request fields against a real server."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caldera.server.api.errors import ApiError
from caldera.server.api.messages import to_conversation
from caldera.server.api.schemas import ChatRequest, parse_request
from tests.server.server_process import (
    NAME,
    Response,
    ServerProcess,
    chat_body,
    image_part,
    make_image,
)

PNG = make_image()


def with_messages(*messages: object) -> dict[str, Any]:
    """Return a body with some messages."""
    return {**chat_body(), "messages": [*messages]}


USER = {"role": "user", "content": "What?"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": NAME}, "messages"),
        (with_messages(), "messages"),
        ({**chat_body("x"), "messages": {}}, "messages"),
        ({**chat_body("x"), "model": None}, "model"),
        (with_messages("x"), "messages[0]"),
        (with_messages({"content": "x"}), "messages[0].role"),
        (with_messages({"role": "robot", "content": "x"}), "messages[0].role"),
        (with_messages({"role": "tool", "content": "x"}), "messages[0].role"),
        (with_messages({"role": ["user"], "content": "x"}), "messages[0].role"),
        (with_messages({"role": "user"}), "messages[0].content"),
        (with_messages({"role": "user", "content": None}), "messages[0].content"),
        (with_messages({"role": "user", "content": 7}), "messages[0].content"),
        (with_messages({"role": "user", "content": ""}), "messages[0].content"),
        (with_messages({"role": "user", "content": []}), "messages[0].content"),
        (chat_body("x", {"type": "video_url"}), "messages[0].content[1].type"),
        (chat_body("x", {"text": "x"}), "messages[0].content[1].type"),
        (chat_body("x", {"type": "text"}), "messages[0].content[1].text"),
        (chat_body("x", {"type": "image_url"}), "messages[0].content[1].image_url"),
        (chat_body({"type": "image_url", "image_url": {"url": 7}}), "messages[0].content[0].image_url.url"),
        (with_messages({"role": "system", "content": [image_part("data:,")]}, USER), "messages[0].content[0].type"),
        (
            with_messages(USER, {"role": "assistant", "content": [image_part("data:,")]}, USER),
            "messages[1].content[0].type",
        ),
        (with_messages(USER, {"role": "assistant", "content": "x"}), "messages[1].role"),
        (with_messages({"role": "system", "content": ""}), "messages"),
        (with_messages({"role": "assistant", "content": 7}, USER), "messages[0].content"),
        (with_messages(USER, {"role": "assistant", "tool_calls": [{"id": "a"}]}, USER), "messages[1].tool_calls"),
        (with_messages({**USER, "images": ["AAAA"]}), "messages[0].images"),
        (chat_body("x", {"type": "image"}), "messages[0].content[1]"),
        (chat_body("x", {"type": "input_image", "file_id": "a"}), "messages[0].content[1].image_url"),
    ],
)  # fmt: skip
def test_invalid_messages_are_rejected_by_field(
    server: ServerProcess, body: dict[str, Any], param: str
) -> None:
    """Each error names the field that is not valid."""
    answer = server.post(body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert answer.error["message"].startswith(param)


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("n", 0, "1"), ("n", -1, "1"), ("n", 10**9, "8"), ("n", 1.5, "integer"), ("n", "2", "integer"),
        ("n", True, "integer"),
        ("max_tokens", 0, "1"), ("max_tokens", -2, "-1"), ("max_tokens", 2**63, "1000000"),
        ("max_tokens", "inf", "integer"),
        ("max_completion_tokens", 0, "1"), ("temperature", -1, "0"), ("temperature", 1e9, "2"),
        ("temperature", "1", "number"),
        ("top_p", -0.1, "0"), ("top_p", 2, "1"), ("top_logprobs", 21, "20"), ("top_logprobs", 2, "logprobs"),
        ("top_k", -2, "-1"),
        ("stop", ["a"] * 5, "4"), ("stop", "", "1"), ("stop", "x" * (1 << 20), "64"), ("stop", ["a", "x" * 65], "64"),
        ("stop", [7], "string"), ("seed", 2**64, str(2**64 - 1)), ("seed", -(2**63) - 1, str(-(2**63))),
        ("seed", "x", "integer"), ("stream", "yes", "boolean"),
        ("stream_options", {"include_usage": True}, "stream"),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_rejected(
    server: ServerProcess, name: str, value: object, bound: str
) -> None:
    """The error names the parameter and its bound; the engine gets no request."""
    before = server.metric("caldera_prompt_tokens_total")
    answer = server.ask("What?", **{name: value})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["param"].split("[")[0] == name
    assert bound in answer.error["message"]
    assert server.metric("caldera_prompt_tokens_total") == before


def test_parameters_at_their_bounds_are_accepted(server: ServerProcess) -> None:
    """The lowest and the highest value of each parameter are valid, and so are those that change nothing."""
    more: dict[str, Any]
    for more in (
        {"n": 8, "max_tokens": 1}, {"temperature": 2, "top_p": 1, "seed": 2**64 - 1},
        {"seed": -(2**63), "temperature": 1}, {"logprobs": True, "top_logprobs": 20}, {"stop": ["x" * 64] * 4},
        {"top_k": 1}, {"top_k": -1, "temperature": 1}, {"top_k": 0}, {"n": 1.0, "max_tokens": 2.0, "seed": 3.0},
        dict.fromkeys(ChatRequest.model_fields.keys() - {"model", "messages"}) | {"max_completion_tokens": 1},
        {"stop": [], "tools": [], "tool_choice": "none", "functions": None, "parallel_tool_calls": True},
        {"tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "audio": None},
        {"user": "me", "store": False, "metadata": {"a": "b"}, "something_new": [1], "service_tier": "auto"},
        {"stream_options": {"include_usage": False}}, {"stream_options": {}}, {"top_logprobs": 0, "logprobs": False},
        {"frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0.0, "skip_special_tokens": True},
    ):  # fmt: skip
        assert server.ask("What is it?", **{"max_tokens": 2, **more}).status == 200, more


def test_parameters_without_limit_are_those_of_other_servers(server: ServerProcess) -> None:
    """`top_p` 0 is greedy, `top_k` -1 takes all tokens, and `max_tokens` -1 fills the context."""
    greedy = server.ask("What is it?", temperature=0).text
    assert server.ask("What is it?", temperature=2, top_p=0).text == greedy
    sampled = [server.ask("What is it?", temperature=2, seed=5, top_k=k).text for k in (-1, 0)]
    assert sampled[0] == sampled[1] != greedy
    usage = server.ask("What is it?", max_tokens=-1).json["usage"]
    assert usage["total_tokens"] == 2048


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ 7 * 7 }}"), ("chat_template_kwargs", {"tokenize": False}), ("guided_regex", "(a+)+$"),
        ("prompt_embeds", "AAAA"), ("mm_processor_kwargs", {"num_crops": 10**6}), ("logit_bias", {"1": 5}),
        ("audio", {}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "(a+)+$", "type": "x"}}}]),
        ("response_format", {"type": "json_object"}), ("presence_penalty", 0.5), ("functions", [{}]),
        ("modalities", ["audio"]),
        ("max_new_tokens", 5), ("system", "Be brief."), ("skip_special_tokens", False), ("images", ["AAAA"]),
        ("guided_json", {}), ("structured_outputs", {"regex": "(a+)+$"}), ("echo", True), ("presence_penalty", False),
    ],
)  # fmt: skip
def test_unsupported_parameters_are_rejected_by_name(
    server: ServerProcess, name: str, value: object
) -> None:
    """Templates, patterns, tensors and tools of clients are not ignored."""
    answer = server.ask("What?", **{name: value})
    assert (answer.status, answer.code) == (400, "unsupported_parameter")
    assert answer.error["param"] in (name, "guided_...")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


FIELDS = st.sampled_from(
    [*chat_body("x"), "n", "stop", "stream", "seed", "top_p", "logprobs", "tools", "stream_options"]
)


@settings(max_examples=60)
@given(changes=st.dictionaries(FIELDS, VALUES, max_size=3))
def test_no_json_value_causes_a_server_error(
    shared_server: ServerProcess, changes: dict[str, Any]
) -> None:
    """Any JSON in any field is answered or rejected (schemathesis over the schema is in the slow tier)."""
    from pytest_socket import enable_socket

    enable_socket()
    answer: Response = shared_server.ask("What?", **changes)
    assert answer.status in (200, 400, 404), answer.content


PYDANTIC_WORDS = (
    "input should", "field required", "validation error", "extra inputs", "pydantic", "value error", "unable to",
    "tag", "for further information",
)  # fmt: skip


@settings(max_examples=300)
@given(
    changes=st.dictionaries(st.sampled_from(list(ChatRequest.model_fields)), VALUES, max_size=2),
    message=st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls", "images", "refusal"]),
        VALUES
        | st.sampled_from(["user", "system", "assistant"])
        | st.just([{"type": "image_url"}]),
    ),
    part=st.dictionaries(
        st.sampled_from(["type", "text", "image_url", "url", "source", "data"]),
        VALUES | st.sampled_from(["text", "image", "image_url", "input_image"]),
    ),
)
def test_errors_are_in_the_words_of_the_server(
    changes: dict[str, Any], message: dict[str, Any], part: dict[str, Any]
) -> None:
    """No message quotes the validation library, repeats long values, or has more than one line."""
    messages = [message, {"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
    for body in ({"model": NAME, "messages": messages, **changes}, {**message, **changes}):
        text = error_message(body)
        assert not any(words in text.lower() for words in PYDANTIC_WORDS)
        assert "is not valid" not in text
        assert len(text) < 250
        assert text.isprintable()


def error_message(body: dict[str, Any]) -> str:
    """Return the message of the error that a body causes, empty if it is valid."""
    try:
        to_conversation(parse_request(body), max_images=2)
    except ApiError as error:
        return error.message
    return ""
