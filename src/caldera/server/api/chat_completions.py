"""Route of chat completions: loads images, builds the prompt, queries the engine and builds the response."""

import asyncio
import random
import time
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from caldera.errors import ConversationError
from caldera.inference.engine import Engine, Request, SamplingParams, TextDelta
from caldera.server.api.errors import ApiError, bad_request, from_media_error
from caldera.server.api.generation import AsyncAnswerStreams, Events, latency_recorder
from caldera.server.api.messages import to_conversation
from caldera.server.api.middleware import RequestContext
from caldera.server.api.responses import EventStream, ResponseBuilder, wait_for_disconnect
from caldera.server.api.schemas import ChatRequest, parse_request
from caldera.server.api.service import ClientDisconnected, Service
from caldera.server.media.errors import MediaError

_NUM_SEEDS = 1 << 63
MAX_TEXT = 1 << 20
"""Characters of all messages together; counting the tokens of a longer text would take seconds."""


async def create_chat_completion(service: Service, http: HttpRequest) -> Response:
    """Respond to one request for a chat completion; raise ApiError if it cannot be answered."""
    context: RequestContext = http.scope["context"]
    try:
        return await _create_chat_completion(service, http, context)
    except ClientDisconnected:
        context.disconnected = True
        return Response(status_code=499)


async def _create_chat_completion(
    service: Service, http: HttpRequest, context: RequestContext
) -> Response:
    engine = service.engine
    async with service.bodies.json(http) as body:
        request = parse_request(body)
        del body
        if request.model != service.config.name:
            raise ApiError(
                404,
                f"there is no model of that name here; this is {service.config.name!r}",
                "model",
                "model_not_found",
            )
        context.log_fields["stream"] = bool(request.stream)
        engine_requests = await service.run_cancellable(
            _build_requests(service, engine, request, context), wait_for_disconnect(http.receive)
        )
    streams = AsyncAnswerStreams(engine, engine_requests)
    builder = ResponseBuilder(
        id=f"chatcmpl-{context.id}",
        created=int(time.time()),
        model=service.config.name,
        logprobs=bool(request.logprobs),
        usage=bool(request.stream_options and request.stream_options.include_usage),
    )
    respond = _respond_stream if request.stream else _respond
    try:
        return await respond(service, http, builder, streams)
    except BaseException:
        streams.cancel()
        raise


async def _build_requests(
    service: Service, engine: Engine, request: ChatRequest, context: RequestContext
) -> list[Request]:
    """Load the images and build the prompt; return one request to the engine for each choice."""
    conversation, urls = to_conversation(
        request, service.config.limits.images, labeled=engine.labels_images
    )
    context.log_fields["images"] = len(urls)
    if sum(len(turn.text) for turn in conversation.turns) > MAX_TEXT:
        raise bad_request(
            f"messages: contain more than {MAX_TEXT:,} characters",
            "messages",
            "string_above_max_length",
        )
    try:
        prepare = partial(engine.prepare_image, several=len(urls) > 1)
        images = await service.media.load_all(urls, prepare)
        prompt = await asyncio.to_thread(engine.build_prompt, conversation, images)
    except MediaError as error:
        raise from_media_error(error) from None
    except ConversationError as error:
        raise bad_request(str(error), "messages") from None
    max_new_tokens = _max_answer_tokens(service, engine, request, len(prompt.ids))
    seed = random.getrandbits(62) if request.seed is None else request.seed % _NUM_SEEDS
    temperature = request.temperature
    if temperature is None:
        temperature = service.config.temperature
    is_greedy = request.top_p == 0
    return [
        Request(
            prompt,
            SamplingParams(
                temperature=0.0 if is_greedy else temperature,
                top_p=1.0 if is_greedy or request.top_p is None else request.top_p,
                top_k=max(0, request.top_k or 0),
                max_new_tokens=max_new_tokens,
                seed=(seed + index) % _NUM_SEEDS,
                stop=tuple(request.stop or ()),
                logprobs=bool(request.logprobs),
                top_logprobs=request.top_logprobs or 0,
            ),
        )
        for index in range(request.n or 1)
    ]


def _max_answer_tokens(
    service: Service, engine: Engine, request: ChatRequest, num_prompt: int
) -> int:
    """Return the limit on the answer: as requested, or the server's own limit as far as the context allows it.

    For -1 it is what the context has room for, or the server's own limit if the context has none.
    """
    requested = request.max_completion_tokens or request.max_tokens
    context_length = engine.context_length
    if requested == -1 and context_length is not None:
        requested = max(1, context_length - num_prompt)
    elif requested is None or requested == -1:
        requested = service.config.limits.max_tokens
        if context_length is not None:
            requested = max(1, min(requested, context_length - num_prompt))
    if context_length is not None and num_prompt + requested > context_length:
        raise bad_request(
            f"This model's maximum context length is {context_length} tokens. However, you requested "
            f"{num_prompt + requested} tokens ({num_prompt} in the messages, {requested} in the completion). "
            "Please shorten the messages or the completion.",
            "messages",
            "context_length_exceeded",
        )
    return requested


async def _respond(
    service: Service, http: HttpRequest, builder: ResponseBuilder, streams: AsyncAnswerStreams
) -> Response:
    """Wait for the complete answer."""
    context: RequestContext = http.scope["context"]
    deltas: list[list[TextDelta]] = [[] for _ in streams.choices]
    record_latency = latency_recorder(service.metrics, context.started)

    async def collect() -> None:
        async for events in streams.events(service.config.limits.keep_alive_interval):
            record_latency(events)
            for index, delta in events:
                if delta is not None:
                    deltas[index].append(delta)

    try:
        await service.run_cancellable(collect(), wait_for_disconnect(http.receive))
    finally:
        streams.cancel()
        context.log_fields.update(streams.token_counts)
    return JSONResponse(builder.completion(streams, deltas))


async def _respond_stream(
    service: Service, http: HttpRequest, builder: ResponseBuilder, streams: AsyncAnswerStreams
) -> Response:
    """Wait for the first tokens, or for the first keep-alive, then stream; an error before that has its own status."""
    events = streams.events(service.config.limits.keep_alive_interval)

    async def first_events() -> Events:
        return await anext(events)

    first = await service.run_cancellable(first_events(), wait_for_disconnect(http.receive))
    return EventStream(service, http.scope["context"], builder, streams, first, events)
