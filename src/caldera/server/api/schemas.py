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

from caldera.errors import shorten_value
from caldera.inference.sampling import MAX_TOP_LOGPROBS
from caldera.server.api.content_parts import normalize_part
from caldera.server.api.errors import ApiError, bad_request

MAX_CHOICES = 8
MAX_STOPS = 4
MAX_STOP_LENGTH = 64
MAX_MESSAGES = 2048
MAX_TOKENS = 1_000_000
"""Above any context length; whether an answer fits the context is checked once the prompt is built."""

_MAX_SEED = (1 << 64) - 1

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "logit_bias": ({},),
    "prediction": (), "web_search_options": (), "presence_penalty": (0,), "frequency_penalty": (0,),
    "repetition_penalty": (1,), "repeat_penalty": (1,), "length_penalty": (1,), "best_of": (1,),
    "use_beam_search": (False,), "min_p": (0,), "typical_p": (1,), "top_a": (0,), "tfs_z": (1,), "mirostat": (0,),
    "min_tokens": (0,), "ignore_eos": (False,), "echo": (False,), "suffix": ("",), "stop_token_ids": ([],),
    "bad_words": ([],), "allowed_token_ids": (), "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,), "truncate_prompt_tokens": (), "logits_processors": ([],), "chat_template": (),
    "chat_template_kwargs": ({},), "documents": ([],), "add_generation_prompt": (True,),
    "continue_final_message": (False,), "prompt_embeds": (), "mm_processor_kwargs": ({},), "structured_outputs": (),
    "grammar": ("",), "json_schema": (), "format": ("",), "options": ({},), "prompt": (), "input": (), "images": ([],),
    "system": ("",), "instructions": ("",), "max_new_tokens": (), "n_predict": (), "stop_sequences": ([],),
}  # fmt: skip
"""Unsupported fields that would change the answer, with the values besides null that have no effect."""

_REPLACEMENTS = {
    "system": "send it as a message of the role system",
    "instructions": "send it as a message of the role system",
    "prompt": "send it in messages",
    "input": "send it in messages",
    "images": "send them as parts of a message",
    "max_new_tokens": "use max_tokens",
    "n_predict": "use max_tokens",
    "stop_sequences": "use stop",
}
"""What to do instead of some unsupported fields."""

_UNSUPPORTED_PREFIX = "guided_"

_MAX_QUOTED = 40
"""Characters of a string that a message repeats."""

_ROLES = ("system", "developer", "user", "assistant")
_PARTS = ("text", "image_url", "input_text", "input_image", "image")


def _encodable(text: str) -> str:
    """Return `text`; raise ValueError if it contains a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains half a character (a lone surrogate)") from None
    return text


def _without_nul(text: str) -> str:
    """Return `text`; raise ValueError if it contains NUL."""
    if "\0" in text:
        raise ValueError("the text contains a NUL character")
    return text


AnswerText = Annotated[str, AfterValidator(_encodable)]
"""Any text that a model may have written."""

Text = Annotated[AnswerText, AfterValidator(_without_nul)]


class _Schema(BaseModel):
    """Base that ignores unknown fields and does not convert strings to numbers."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextPart(_Schema):
    """Text part of a message."""

    type: Literal["text"]
    text: Text


class AnswerPart(_Schema):
    """Text part of an earlier answer."""

    type: Literal["text"]
    text: AnswerText


class ImageUrl(_Schema):
    """URL of an image, or the image itself as a data URL."""

    url: Text


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


def _null_to_text(value: object) -> object:
    return "" if value is None else value


_normalize = BeforeValidator(normalize_part)

_SystemContent = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Annotated[TextPart, _normalize]], Tag("<parts>")],
    Discriminator(_content_kind),
    BeforeValidator(_null_to_text),
]
_AnswerContent = Annotated[
    Annotated[AnswerText, Tag("<text>")]
    | Annotated[list[Annotated[AnswerPart, _normalize]], Tag("<parts>")],
    Discriminator(_content_kind),
    BeforeValidator(_null_to_text),
]
_UserPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(_part_type),
    _normalize,
]
_UserContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[_UserPart], Tag("<parts>")],
    Discriminator(_content_kind),
]


def _reject_value(value: object) -> None:
    """Accept what has no content, such as null or an empty list; raise ValueError for anything else."""
    if value:
        raise ValueError("is not supported; remove it (images are parts of the content)")


_Unsupported = Annotated[None, BeforeValidator(_reject_value)]


class _Message(_Schema):
    """Base of all messages, with the fields that, like the content, would change the answer."""

    tool_calls: _Unsupported = None
    function_call: _Unsupported = None
    images: _Unsupported = None
    image: _Unsupported = None
    image_url: _Unsupported = None
    audio: _Unsupported = None
    video: _Unsupported = None
    videos: _Unsupported = None
    files: _Unsupported = None
    attachments: _Unsupported = None


class SystemMessage(_Message):
    """Instructions for the assistant."""

    role: Literal["system", "developer"]
    content: _SystemContent


class UserMessage(_Message):
    """Text and images of the user."""

    role: Literal["user"]
    content: _UserContent


class AssistantMessage(_Message):
    """Earlier answer; one that the model ended at once is empty."""

    role: Literal["assistant"]
    content: _AnswerContent = ""
    refusal: AnswerText | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[SystemMessage, Tag("<developer>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")],
    Discriminator(_role),
]


class StreamOptions(_Schema):
    """Additional content of a stream."""

    include_usage: bool | None = None


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_int(value: object) -> object:
    """Return a whole number such as 3.0 as an integer, and anything else unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_token_count(value: int) -> int:
    if value != -1 and not 1 <= value <= MAX_TOKENS:
        raise ValueError(
            f"must be at least 1 and at most {MAX_TOKENS}, or -1 for as many as the context has room for"
        )
    return value


_Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
_Int = Annotated[int, BeforeValidator(_as_int)]
_TokenCount = Annotated[_Int, AfterValidator(_check_token_count)]


class ChatRequest(_Schema):
    """Request for a chat completion."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[_Int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: _TokenCount | None = None
    max_completion_tokens: _TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """0 is greedy: only the most likely token is left."""

    top_k: Annotated[_Int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    """-1 and 0 are no limit."""

    seed: Annotated[_Int, Field(ge=-(1 << 63), le=_MAX_SEED)] | None = None
    stop: Annotated[
        Annotated[list[_Stop], Field(max_length=MAX_STOPS)] | None, BeforeValidator(_as_list)
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[_Int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
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
    options = request.stream_options
    if options is not None and options.include_usage and not request.stream:
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
            advice = _REPLACEMENTS.get(name, "remove it")
            message = f"{param}: this parameter is not supported; {advice}"
            raise bad_request(message, param, "unsupported_parameter")


_WORDS = {
    "missing": "is missing",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be a boolean",
    "list_type": "must be a list",
    "model_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have a length of at least {min_length}",
    "too_long": "must have a length of at most {max_length}",
    "literal_error": "must be {expected}",
    "value_error": "{error}",
}
"""Messages by pydantic's type of an error, whose own wording changes with its version."""


def _first_error(error: ValidationError) -> ApiError:
    """Return the first validation error, with the path of its field."""
    details = error.errors(include_url=False)[0]
    location, value = details["loc"], details["input"]
    message = _WORDS.get(details["type"], "is not valid").format(**details.get("ctx", {}))
    if details["type"] == "union_tag_invalid" and isinstance(value, dict):
        is_part = "content" in location
        location = (*location, "type" if is_part else "role")
        value = value.get(str(location[-1]))
        message = f"must be one of {', '.join(map(repr, _PARTS if is_part else _ROLES))}"
    elif details["type"] == "union_tag_invalid":
        message = "must be an object"
    param = _field_path(location)
    code = "missing_required_parameter" if details["type"] == "missing" else "invalid_value"
    if details["type"] not in ("missing", "value_error"):
        message = f"{message}, got {_describe_value(value)}"
    return bad_request(f"{param}: {message}", param, code)


def _describe_value(value: object) -> str:
    """Return a value of a request for a message: short, and without the contents of lists and objects."""
    match value:
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case str() if len(value) > _MAX_QUOTED:
            return f"a string of {len(value):,} characters"
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case _:
            return shorten_value(value)


def _field_path(location: tuple[int | str, ...]) -> str:
    """Format a location as `messages[0].content[1].type`, without the tags of the unions."""
    steps = (
        f"[{step}]" if isinstance(step, int) else f".{step}"
        for step in location
        if isinstance(step, int) or not step.startswith("<")
    )
    return "".join(steps).removeprefix(".")
