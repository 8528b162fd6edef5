"""A service in, the application that answers for it out: its routes, and the shape of every error."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from caldera import __version__
from caldera.server.api.chat_completions import create_chat_completion
from caldera.server.api.errors import ApiError, bad_request, internal_error
from caldera.server.api.metrics import CONTENT_TYPE
from caldera.server.api.middleware import RequestMiddleware
from caldera.server.api.schemas import ChatRequest
from caldera.server.api.service import Service

_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": what}
    for status, what in (
        (400, "the request cannot be carried out as it is"), (401, "the key is missing or wrong"),
        (403, "the Host header names another server"), (404, "no such model"),
        (413, "the body is too large"), (415, "the body is no plain JSON"), (422, "an image cannot be downloaded"),
        (429, "the key has asked for too much"), (502, "the host of an image failed"),
        (503, "not now: loading, busy or shutting down"),
    )
}  # fmt: skip


def create_app(service: Service, page: ASGIApp | None = None) -> FastAPI:
    """Return the application; `wrapped` is what a server is given.

    Args:
        service: What answers.
        page: Given what no route takes.
    """
    app = FastAPI(
        title="caldera", version=__version__, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.include_router(_public_routes(service))
    app.include_router(_authenticated_routes(service, app))
    _register_error_handlers(app)
    if page is not None:
        app.router.default = page
    return app


def with_middleware(app: FastAPI, service: Service) -> ASGIApp:
    """Return the application behind the layer that every request passes."""
    return RequestMiddleware(app, service)


def _public_routes(service: Service) -> APIRouter:
    """Return what may be asked without a key."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process lives."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: _ERROR_RESPONSES[503]})
    async def ready() -> dict[str, str]:
        """Tell whether requests are taken."""
        _ = service.engine
        return {"status": "ready"}

    return routes


def _authenticated_routes(service: Service, app: FastAPI) -> APIRouter:
    """Return what needs a key, where there are keys: the whole router does, whatever a path looks like."""

    async def authorised(request: Request) -> None:
        owner = service.keys.authenticate(request.headers.get("authorization"))
        request.scope["visit"].told["key"] = owner
        request.scope["owner"] = owner

    routes = APIRouter(dependencies=[Depends(authorised)])
    model = {"id": service.settings.name, "object": "model", "created": 0, "owned_by": "caldera"}

    @routes.get("/v1/models", responses={401: _ERROR_RESPONSES[401]})
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [model]}

    @routes.get(
        "/v1/models/{name:path}", responses={401: _ERROR_RESPONSES[401], 404: _ERROR_RESPONSES[404]}
    )
    async def one_model(name: str) -> dict[str, Any]:
        """Describe a model."""
        if name != service.settings.name:
            raise ApiError(404, "there is no model of that name here", "model", "model_not_found")
        return model

    @routes.post(
        "/v1/chat/completions",
        responses=_ERROR_RESPONSES,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _request_schema()}},
            }
        },
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        request.scope["visit"].ends.append(service.key_limits.acquire(request.scope["owner"]))
        return await create_chat_completion(service, request)

    @routes.get("/openapi.json", include_in_schema=False)
    async def schema() -> dict[str, Any]:
        """Describe the routes."""
        return app.openapi()

    if service.settings.metrics:

        @routes.get("/metrics", response_class=Response, responses={401: _ERROR_RESPONSES[401]})
        async def metrics() -> Response:
            """Tell what was done, in Prometheus's format."""
            return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return routes


def _request_schema() -> dict[str, Any]:
    """Return the JSON Schema of a request, with its parts within."""
    return ChatRequest.model_json_schema()


def _register_error_handlers(app: FastAPI) -> None:
    """Tell every error in OpenAI's shape."""

    def shaped(
        turn: Callable[[Any], ApiError],
    ) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, raised: Exception) -> Response:
            error = turn(raised)
            request.scope["visit"].fail(error)
            return JSONResponse(error.body, error.status, error.headers)

        return handle

    app.add_exception_handler(ApiError, shaped(lambda error: error))
    app.add_exception_handler(HTTPException, shaped(_from_http_exception))
    app.add_exception_handler(
        RequestValidationError, shaped(lambda _: bad_request("the request is not valid"))
    )
    app.add_exception_handler(Exception, shaped(lambda _: internal_error()))


def _from_http_exception(error: HTTPException) -> ApiError:
    """Return the error for a route that is not there, or not by that method."""
    if error.status_code == 405:
        allow = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
        return ApiError(405, "the route does not take this method", allow=allow)
    if error.status_code == 404:
        return ApiError(404, "there is no such route", code="unknown_url")
    return ApiError(error.status_code, "the request is not valid")
