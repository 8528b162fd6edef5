"""Request schema: the fields of OpenAI's chat completions that this server supports."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)

from caldera.inference.sampling import MAX_TOP_LOGPROBS
from caldera.server.api.errors import ApiError, bad_request

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 64
MAX_MESSAGES = 2048
MAX_TOKENS = 1_000_000
"""Above any context length; whether an answer fits the context is checked once the prompt is built."""

_NUM_SEEDS = 1 << 63

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],), "tool_choice": ("none",), "functions": ([],), "function_call": ("none",),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "logit_bias": ({},),
    "prediction": (), "web_search_options": (), "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "best_of": (1,), "use_beam_search": (False,), "min_p": (0,), "min_tokens": (0,),
    "ignore_eos": (False,), "echo": (False,), "stop_token_ids": ([],), "bad_words": ([],), "allowed_token_ids": (),
    "logits_processors": ([],), "chat_template": (), "chat_template_kwargs": ({},), "documents": (),
    "add_generation_prompt": (True,), "continue_final_message": (False,), "prompt_embeds": (),
    "mm_processor_kwargs": (), "structured_outputs": (), "grammar": (), "prompt": (), "input": (),
}  # fmt: skip
"""Unsupported fields that would change the answer, with the values besides null that have no effect."""

_UNSUPPORTED_PREFIX = "guided_"

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("text", "image_url")


def _valid_text(text: str) -> str:
    """Return `text`; raise ValueError if it contains NUL or a lone surrogate."""
    if "\0" in text:
        raise ValueError("the text contains a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_valid_text)]


class _Schema(BaseModel):
    """Base that ignores unknown fields and does not convert strings to numbers."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextPart(_Schema):
    """Text part of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(_Schema):
    """URL of an image, or the image itself as a data URL."""

    url: Text
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Schema):
    """Image part of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _content_kind(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


def _part_type(value: object) -> str:
    return f"<{value.get('type') if isinstance(value, dict) else None}>"


def _role(value: object) -> str:
    return f"<{value.get('role') if isinstance(value, dict) else None}>"


_TextContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Tag("<parts>")],
    Discriminator(_content_kind),
]
_Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(_part_type),
]
_ImageContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[_Part], Tag("<parts>")],
    Discriminator(_content_kind),
]


class SystemMessage(_Schema):
    """Instructions for the assistant."""

    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(_Schema):
    """Text and images of the user."""

    role: Literal["user"]
    content: _ImageContent


class AssistantMessage(_Schema):
    """Earlier answer."""

    role: Literal["assistant"]
    content: _TextContent
    tool_calls: None = None
    function_call: None = None
    audio: None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    Discriminator(_role),
]


class StreamOptions(_Schema):
    """Additional content of a stream."""

    include_usage: bool = False


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class ChatRequest(_Schema):
    """Request for a chat completion."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: _TokenCount | None = None
    max_completion_tokens: _TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-_NUM_SEEDS, lt=_NUM_SEEDS)] | None = None
    stop: Annotated[
        Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def parse_request(body: object) -> ChatRequest:
    """Validate a decoded body.

    Raises:
        ApiError: It is not an object, a field is not valid, or one is not supported.
    """
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    _reject_unsupported(body)
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _first_error(error) from None
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs: needs logprobs to be true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: needs stream to be true", "stream_options")
    return request


def _reject_unsupported(body: dict[str, Any]) -> None:
    """Raise if a field would change the answer if it were ignored."""
    for name, value in body.items():
        is_listed = name in _UNSUPPORTED
        if value is None or not (is_listed or name.startswith(_UNSUPPORTED_PREFIX)):
            continue
        no_effect = _UNSUPPORTED.get(name, ())
        # False == 0: compare the types as well.
        if value not in no_effect or isinstance(value, bool) != any(
            isinstance(default, bool) for default in no_effect
        ):
            param = name if is_listed else _UNSUPPORTED_PREFIX + "..."
            message = f"{param}: this parameter is not supported; remove it"
            raise bad_request(message, param, "unsupported_parameter")


def _first_error(error: ValidationError) -> ApiError:
    """Return the first validation error, with the path of its field."""
    details = error.errors(include_url=False, include_context=False)[0]
    location = details["loc"]
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "union_tag_invalid" and isinstance(details["input"], dict):
        is_part = "content" in location
        location = (*location, "type" if is_part else "role")
        message = f"should be one of {', '.join(map(repr, _PARTS if is_part else _ROLES))}"
    elif details["type"] == "union_tag_invalid":
        message = "should be an object"
    param = _field_path(location)
    code = "missing_required_parameter" if details["type"] == "missing" else "invalid_value"
    return bad_request(f"{param}: {message}", param, code)


def _field_path(location: tuple[int | str, ...]) -> str:
    """Format a location as `messages[0].content[1].type`, without the tags of the unions."""
    steps = (
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in location
        if isinstance(step, int) or not step.startswith("<")
    )
    return "".join(steps).removeprefix(".")
