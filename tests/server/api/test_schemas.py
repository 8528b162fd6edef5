"""Tests of request fields against a real server."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        (with_messages(USER, {"role": "assistant", "content": None}, USER), "messages[1].content"),
        (with_messages(USER, {"role": "assistant", "content": "x"}), "messages[1].role"),
        (with_messages({"role": "assistant", "content": "x"}, USER), "messages[0].role"),
        (with_messages(USER, {"role": "system", "content": "x"}), "messages[1].role"),
        (with_messages({"role": "system", "content": "x"}), "messages[0].role"),
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
        ("max_tokens", 0, "1"), ("max_tokens", -1, "1"), ("max_tokens", 2**63, "1000000"),
        ("max_tokens", "inf", "integer"),
        ("max_completion_tokens", 0, "1"), ("temperature", -1, "0"), ("temperature", 1e9, "2"),
        ("temperature", "1", "number"),
        ("top_p", 0, "0"), ("top_p", 2, "1"), ("top_logprobs", 21, "20"), ("top_logprobs", 2, "logprobs"),
        ("top_k", -1, "0"),
        ("stop", ["a"] * 5, "4"), ("stop", "", "1"), ("stop", "x" * (1 << 20), "64"), ("stop", ["a", "x" * 65], "64"),
        ("stop", [7], "string"), ("seed", 2**63, str(2**63)), ("seed", "x", "integer"), ("stream", "yes", "boolean"),
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
    """The lowest and the highest value of each parameter are valid."""
    for more in (
        {"n": 8, "max_tokens": 1}, {"temperature": 2, "top_p": 1, "seed": 2**63 - 1},
        {"seed": -(2**63), "temperature": 1},
        {"logprobs": True, "top_logprobs": 20}, {"stop": ["x" * 64] * 4}, {"stop": None, "n": None, "seed": None},
        {"top_k": 1},
        {"tools": [], "response_format": {"type": "text"}, "logit_bias": {}, "presence_penalty": 0, "audio": None},
        {"user": "me", "store": False, "metadata": {"a": "b"}, "something_new": [1]},
    ):  # fmt: skip
        assert server.ask("What is it?", **more).status == 200, more


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template", "{{ 7 * 7 }}"), ("chat_template_kwargs", {"tokenize": False}), ("guided_regex", "(a+)+$"),
        ("prompt_embeds", "AAAA"), ("mm_processor_kwargs", {"num_crops": 10**6}), ("logit_bias", {"1": 5}),
        ("audio", {}),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "(a+)+$", "type": "x"}}}]),
        ("response_format", {"type": "json_object"}), ("presence_penalty", 0.5), ("functions", [{}]),
        ("modalities", ["audio"]),
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
