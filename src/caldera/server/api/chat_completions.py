"""A checked request in, its answer out: images opened, the prompt made, the engine asked, the answer written."""

import asyncio
import random
import time
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from caldera.errors import ConversationError
from caldera.inference.engine import Engine, Request, SamplingParams, TextDelta
from caldera.server.api.errors import ApiError, bad_request, from_media_error
from caldera.server.api.generation import CompletionStreams, Events, LatencyTracker
from caldera.server.api.messages import to_conversation
from caldera.server.api.middleware import RequestContext
from caldera.server.api.responses import EventStream, ResponseBuilder, wait_for_disconnect
from caldera.server.api.schemas import ChatRequest, parse_request
from caldera.server.api.service import ClientDisconnected, Service
from caldera.server.media.errors import MediaError

_SEEDS = 1 << 63
MAX_TEXT = 1 << 20
"""Characters of all messages together; to tell a longer text's tokens would take seconds."""


@dataclass(frozen=True, slots=True)
class _StartedCompletion:
    """An answer that the engine has begun, or that waits there."""

    head: ResponseBuilder
    answers: CompletionStreams


async def create_chat_completion(service: Service, http: HttpRequest) -> Response:
    """Answer one request for a chat completion.

    Raises:
        ApiError: It cannot be answered.
    """
    visit: RequestContext = http.scope["visit"]
    engine = service.engine
    async with service.bodies.json(http) as body:
        request = parse_request(body)
        del body
        if request.model != service.settings.name:
            raise ApiError(
                404,
                f"there is no model of that name here; this is {service.settings.name!r}",
                "model",
                "model_not_found",
            )
        visit.log_fields["stream"] = bool(request.stream)
        try:
            asked = await service.run_cancellable(
                _build_requests(service, engine, request, visit),
                lambda: wait_for_disconnect(http.receive),
            )
        except ClientDisconnected:
            visit.disconnected = True
            return Response(status_code=499)
    answers = CompletionStreams(engine, asked)
    head = ResponseBuilder(
        id=f"chatcmpl-{visit.id}",
        created=int(time.time()),
        model=service.settings.name,
        logprobs=bool(request.logprobs),
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )
    try:
        if request.stream:
            return await _respond_stream(service, http, _StartedCompletion(head, answers))
        return await _respond(service, http, _StartedCompletion(head, answers))
    except ClientDisconnected:
        visit.disconnected = True
        return Response(status_code=499)
    except BaseException:
        answers.cancel()
        raise


async def _build_requests(
    service: Service, engine: Engine, request: ChatRequest, visit: RequestContext
) -> list[Request]:
    """Open the images, make the prompt and say how it is to be answered, once for each choice.

    Raises:
        ApiError: An image is not used, or prompt and answer do not fit the model.
    """
    conversation, urls = to_conversation(request, service.settings.limits.images)
    visit.log_fields["images"] = len(urls)
    if sum(len(turn.text) for turn in conversation.turns) > MAX_TEXT:
        raise bad_request(
            f"messages: hold more than {MAX_TEXT:,} characters",
            "messages",
            "string_above_max_length",
        )
    try:
        images = await service.media.load_all(urls, engine.prepare_image)
        prompt = await asyncio.to_thread(engine.build_prompt, conversation, images)
    except MediaError as error:
        raise from_media_error(error) from None
    except ConversationError as error:
        raise bad_request(str(error), "messages") from None
    tokens = _max_answer_tokens(service, engine, request, len(prompt.ids))
    seed = random.getrandbits(62) if request.seed is None else request.seed % _SEEDS
    temperature = request.temperature
    return [
        Request(
            prompt,
            SamplingParams(
                temperature=service.settings.temperature if temperature is None else temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                top_k=request.top_k or 0,
                max_new_tokens=tokens,
                seed=(seed + index) % _SEEDS,
                stop=tuple(request.stop or ()),
                logprobs=bool(request.logprobs),
                top_logprobs=request.top_logprobs or 0,
            ),
        )
        for index in range(request.n or 1)
    ]


def _max_answer_tokens(service: Service, engine: Engine, request: ChatRequest, prompt: int) -> int:
    """Return how long the answer may be: as asked, or what the context leaves of the server's own limit.

    Raises:
        ApiError: There is no room for it.
    """
    asked = request.max_completion_tokens or request.max_tokens
    room = engine.context_length
    if asked is None:
        usual = service.settings.limits.max_tokens
        asked = usual if room is None else max(1, min(usual, room - prompt))
    if room is not None and prompt + asked > room:
        raise bad_request(
            f"This model's maximum context length is {room} tokens. However, you requested {prompt + asked} tokens "
            f"({prompt} in the messages, {asked} in the completion). Please shorten the messages or the completion.",
            "messages",
            "context_length_exceeded",
        )
    return asked


async def _respond(service: Service, http: HttpRequest, begun: _StartedCompletion) -> Response:
    """Wait for the whole answer.

    Raises:
        ApiError: It failed.
        ClientGone: Nobody waits for it any more.
    """
    visit: RequestContext = http.scope["visit"]
    pieces: list[list[TextDelta]] = [[] for _ in begun.answers.choices]
    timing = LatencyTracker(service.metrics, visit.started)

    async def collect() -> None:
        async for said in begun.answers.events(service.settings.limits.keep_alive_interval):
            timing.record(said)
            for index, piece in said:
                if piece is not None:
                    pieces[index].append(piece)

    try:
        await service.run_cancellable(collect(), lambda: wait_for_disconnect(http.receive))
    finally:
        begun.answers.cancel()
        usage = begun.answers.usage
        visit.log_fields.update(
            {name: usage[name] for name in ("prompt_tokens", "completion_tokens")}
        )
    return JSONResponse(begun.head.completion(begun.answers, pieces))


async def _respond_stream(
    service: Service, http: HttpRequest, begun: _StartedCompletion
) -> Response:
    """Wait for an answer's first words, or for long enough, then stream it; what fails before is a plain error.

    Raises:
        ApiError: It failed before its first words.
        ClientGone: Nobody waits for it any more.
    """
    said = begun.answers.events(service.settings.limits.keep_alive_interval)

    async def first() -> Events:
        return await anext(said)

    try:
        news = await service.run_cancellable(first(), lambda: wait_for_disconnect(http.receive))
    except BaseException:
        begun.answers.cancel()
        raise
    return EventStream(service, http.scope["visit"], begun.head, begun.answers, said, news)
