"""A checked request in, its answer out: pictures opened, the prompt made, the engine asked, the answer written."""

import asyncio
import random
import time
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from caldera.chat.api.answers import Answers, Said, Timing
from caldera.chat.api.bodies import Head
from caldera.chat.api.errors import ApiError, of_media, refused
from caldera.chat.api.front import Visit
from caldera.chat.api.messages import read_messages
from caldera.chat.api.service import ClientGone, Service
from caldera.chat.api.streaming import EventStream, disconnected
from caldera.chat.api.wire import ChatRequest, read_request
from caldera.chat.media_faults import MediaError
from caldera.errors import RecordError
from caldera.inference.engine import Engine, Piece, Request, Sampling

_SEEDS = 1 << 63
MAX_TEXT = 1 << 20
"""Characters of all messages together; to tell a longer text's tokens would take seconds."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """An answer that the engine has begun, or that waits there."""

    head: Head
    answers: Answers


async def complete(service: Service, http: HttpRequest) -> Response:
    """Answer one request for a chat completion.

    Raises:
        ApiError: It cannot be answered.
    """
    visit: Visit = http.scope["visit"]
    engine = service.engine
    async with service.bodies.json(http) as body:
        request = read_request(body)
        del body
        if request.model != service.settings.name:
            raise ApiError(
                404,
                f"there is no model of that name here; this is {service.settings.name!r}",
                "model",
                "model_not_found",
            )
        visit.told["stream"] = bool(request.stream)
        try:
            asked = await service.unless_ended(
                _requests(service, engine, request, visit), lambda: disconnected(http.receive)
            )
        except ClientGone:
            visit.gone = True
            return Response(status_code=499)
    answers = Answers(engine, asked)
    head = Head(
        id=f"chatcmpl-{visit.id}",
        created=int(time.time()),
        model=service.settings.name,
        logprobs=bool(request.logprobs),
        usage=request.stream_options is not None and request.stream_options.include_usage,
    )
    try:
        if request.stream:
            return await _stream(service, http, _Begun(head, answers))
        return await _whole(service, http, _Begun(head, answers))
    except ClientGone:
        visit.gone = True
        return Response(status_code=499)
    except BaseException:
        answers.cancel()
        raise


async def _requests(
    service: Service, engine: Engine, request: ChatRequest, visit: Visit
) -> list[Request]:
    """Open the pictures, make the prompt and say how it is to be answered, once for each choice.

    Raises:
        ApiError: A picture is not used, or prompt and answer do not fit the model.
    """
    conversation, urls = read_messages(request, service.settings.limits.images)
    visit.told["images"] = len(urls)
    if sum(len(turn.text) for turn in conversation.turns) > MAX_TEXT:
        raise refused(
            f"messages: hold more than {MAX_TEXT:,} characters",
            "messages",
            "string_above_max_length",
        )
    try:
        pictures = await service.media.pictures(urls, engine.picture)
        prompt = await asyncio.to_thread(engine.prompt, conversation, pictures)
    except MediaError as error:
        raise of_media(error) from None
    except RecordError as error:
        raise refused(str(error), "messages") from None
    tokens = _answer_tokens(service, engine, request, len(prompt.ids))
    seed = random.getrandbits(62) if request.seed is None else request.seed % _SEEDS
    temperature = request.temperature
    return [
        Request(
            prompt,
            Sampling(
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


def _answer_tokens(service: Service, engine: Engine, request: ChatRequest, prompt: int) -> int:
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
        raise refused(
            f"This model's maximum context length is {room} tokens. However, you requested {prompt + asked} tokens "
            f"({prompt} in the messages, {asked} in the completion). Please shorten the messages or the completion.",
            "messages",
            "context_length_exceeded",
        )
    return asked


async def _whole(service: Service, http: HttpRequest, begun: _Begun) -> Response:
    """Wait for the whole answer.

    Raises:
        ApiError: It failed.
        ClientGone: Nobody waits for it any more.
    """
    visit: Visit = http.scope["visit"]
    pieces: list[list[Piece]] = [[] for _ in begun.answers.choices]
    timing = Timing(service.metrics, visit.begin)

    async def collect() -> None:
        async for said in begun.answers.said(service.settings.limits.ping_seconds):
            timing.note(said)
            for index, piece in said:
                if piece is not None:
                    pieces[index].append(piece)

    try:
        await service.unless_ended(collect(), lambda: disconnected(http.receive))
    finally:
        begun.answers.cancel()
        usage = begun.answers.usage
        visit.told.update({name: usage[name] for name in ("prompt_tokens", "completion_tokens")})
    return JSONResponse(begun.head.completion(begun.answers, pieces))


async def _stream(service: Service, http: HttpRequest, begun: _Begun) -> Response:
    """Wait for an answer's first words, or for long enough, then stream it; what fails before is a plain error.

    Raises:
        ApiError: It failed before its first words.
        ClientGone: Nobody waits for it any more.
    """
    said = begun.answers.said(service.settings.limits.ping_seconds)

    async def first() -> Said:
        return await anext(said)

    try:
        news = await service.unless_ended(first(), lambda: disconnected(http.receive))
    except BaseException:
        begun.answers.cancel()
        raise
    return EventStream(service, http.scope["visit"], begun.head, begun.answers, said, news)
