"""A decoded JSON body in, a checked request out: the fields of OpenAI's chat completions that this server knows."""

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
"""No context is that long; that an answer fits into it is checked once the prompt is known."""

_SEEDS = 1 << 63

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
"""Fields that would change what an answer means, and are not carried out; beside null, values that ask for nothing."""

_UNSUPPORTED_PREFIX = "guided_"

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("text", "image_url")


def _valid_text(text: str) -> str:
    """Refuse what is no text.

    Raises:
        ValueError: It holds a NUL, or half a character.
    """
    if "\0" in text:
        raise ValueError("the text holds a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half a character (a lone surrogate)") from None
    return text


Text = Annotated[str, AfterValidator(_valid_text)]


class _Schema(BaseModel):
    """Fields that are not known are passed over; numbers are not read from texts."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextPart(_Schema):
    """Words."""

    type: Literal["text"]
    text: Text


class ImageUrl(_Schema):
    """Where an image is, or the image itself as a data URL."""

    url: Text
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Schema):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _content_kind(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


def _kind(value: object) -> str:
    return f"<{value.get('type') if isinstance(value, dict) else None}>"


def _role(value: object) -> str:
    return f"<{value.get('role') if isinstance(value, dict) else None}>"


_TextContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Tag("<parts>")],
    Discriminator(_content_kind),
]
_Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(_kind),
]
_ImageContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[_Part], Tag("<parts>")],
    Discriminator(_content_kind),
]


class SystemMessage(_Schema):
    """How the assistant is told to be."""

    role: Literal["system", "developer"]
    content: _TextContent


class UserMessage(_Schema):
    """Words and images of the user."""

    role: Literal["user"]
    content: _ImageContent


class AssistantMessage(_Schema):
    """An earlier answer."""

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
    """What a stream tells beside the answer."""

    include_usage: bool = False


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class ChatRequest(_Schema):
    """What is asked for."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: _TokenCount | None = None
    max_completion_tokens: _TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = None
    stop: Annotated[
        Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def parse_request(body: object) -> ChatRequest:
    """Check a decoded body.

    Raises:
        ApiError: It is no object, a field is wrong, or one is asked for that is not carried out.
    """
    if not isinstance(body, dict):
        raise bad_request("the body should be a JSON object")
    _reject_unsupported(body)
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _first_fault(error) from None
    if request.top_logprobs and not request.logprobs:
        raise bad_request("top_logprobs: needs logprobs to be true", "top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise bad_request("stream_options: needs stream to be true", "stream_options")
    return request


def _reject_unsupported(body: dict[str, Any]) -> None:
    """Refuse what would change the answer's meaning if it were passed over.

    Raises:
        ApiError: There is such a field.
    """
    for name, value in body.items():
        known = name in _UNSUPPORTED
        if value is None or not (known or name.startswith(_UNSUPPORTED_PREFIX)):
            continue
        if (
            not known
            or value not in _UNSUPPORTED[name]
            or isinstance(value, bool) != any(isinstance(one, bool) for one in _UNSUPPORTED[name])
        ):
            shown = name if known else _UNSUPPORTED_PREFIX + "..."
            raise bad_request(
                f"{shown}: this parameter is not supported; leave it out",
                shown,
                "unsupported_parameter",
            )


def _first_fault(error: ValidationError) -> ApiError:
    """Say what is wrong first, and where."""
    fault = error.errors(include_url=False, include_context=False)[0]
    where = fault["loc"]
    said = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "union_tag_invalid" and isinstance(fault["input"], dict):
        is_part = "content" in where
        where = (*where, "type" if is_part else "role")
        said = f"should be one of {', '.join(map(repr, _PARTS if is_part else _ROLES))}"
    elif fault["type"] == "union_tag_invalid":
        said = "should be an object"
    param = _path(where)
    code = "missing_required_parameter" if fault["type"] == "missing" else "invalid_value"
    return bad_request(f"{param}: {said}", param, code)


def _path(where: tuple[int | str, ...]) -> str:
    """Write a place as `messages[0].content[1].type`, without the names of choices that lead there."""
    steps = (
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in where
        if isinstance(step, int) or not step.startswith("<")
    )
    return "".join(steps).removeprefix(".")
