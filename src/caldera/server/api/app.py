"""FastAPI application: routes, authentication, and the shape of errors."""

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
from caldera.server.api.middleware import RequestContext, RequestMiddleware
from caldera.server.api.schemas import ChatRequest
from caldera.server.api.service import Service

_ERRORS = {
    400: "the request is not valid",
    401: "the key is missing or wrong",
    403: "the Host header names another server",
    404: "no such model",
    413: "the body is too large",
    415: "the body is not plain JSON",
    422: "an image cannot be downloaded",
    429: "the key exceeds a limit",
    502: "the host of an image failed",
    503: "temporarily unavailable: loading, busy or shutting down",
}
_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": description} for status, description in _ERRORS.items()
}


def create_app(service: Service, page: ASGIApp | None = None) -> FastAPI:
    """Return the application; a server runs it `with_middleware`.

    Args:
        service: State that all requests share.
        page: Application for the paths that match no route.
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
    """Return the application inside the outermost layer."""
    return RequestMiddleware(app, service)


def _public_routes(service: Service) -> APIRouter:
    """Return the routes that need no key."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Report that the process is alive."""
        return {"status": "ok"}

    @routes.get("/ready", responses={503: _ERROR_RESPONSES[503]})
    async def ready() -> dict[str, str]:
        """Report whether requests are accepted."""
        _ = service.engine
        return {"status": "ready"}

    return routes


def _authenticated_routes(service: Service, app: FastAPI) -> APIRouter:
    """Return the routes that need a key if the server has keys; the dependency covers the whole router."""

    async def authenticate(request: Request) -> None:
        context: RequestContext = request.scope["context"]
        context.authenticated(service.keys.authenticate(request.headers.get("authorization")))

    routes = APIRouter(dependencies=[Depends(authenticate)])
    model = {"id": service.config.name, "object": "model", "created": 0, "owned_by": "caldera"}

    @routes.get("/v1/models", responses={401: _ERROR_RESPONSES[401]})
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [model]}

    @routes.get(
        "/v1/models/{name:path}", responses={401: _ERROR_RESPONSES[401], 404: _ERROR_RESPONSES[404]}
    )
    async def one_model(name: str) -> dict[str, Any]:
        """Describe a model."""
        if name != service.config.name:
            raise ApiError(404, "there is no model of that name here", "model", "model_not_found")
        return model

    schema = {"application/json": {"schema": ChatRequest.model_json_schema()}}

    @routes.post(
        "/v1/chat/completions",
        responses=_ERROR_RESPONSES,
        openapi_extra={"requestBody": {"required": True, "content": schema}},
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        context: RequestContext = request.scope["context"]
        context.on_end.append(service.key_limits.acquire(context.owner))
        return await create_chat_completion(service, request)

    @routes.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        """Describe the routes."""
        return app.openapi()

    if service.config.metrics:

        @routes.get("/metrics", response_class=Response, responses={401: _ERROR_RESPONSES[401]})
        async def metrics() -> Response:
            """Return the metrics in Prometheus's text format."""
            return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return routes


def _register_error_handlers(app: FastAPI) -> None:
    """Respond to every exception with an error in OpenAI's shape."""

    def handler(
        convert: Callable[[Any], ApiError],
    ) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def handle(request: Request, exception: Exception) -> Response:
            error = convert(exception)
            request.scope["context"].fail(error)
            return JSONResponse(error.body, error.status, error.headers)

        return handle

    app.add_exception_handler(ApiError, handler(lambda error: error))
    app.add_exception_handler(HTTPException, handler(_from_http_exception))
    app.add_exception_handler(
        RequestValidationError, handler(lambda _: bad_request("the request is not valid"))
    )
    app.add_exception_handler(Exception, handler(lambda _: internal_error()))


def _from_http_exception(error: HTTPException) -> ApiError:
    """Return the error for an unknown route or method."""
    if error.status_code == 405:
        allow = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow")
        return ApiError(405, "the route does not support this method", allow=allow)
    if error.status_code == 404:
        return ApiError(
            404,
            "there is no such route; there are /v1/chat/completions and /v1/models",
            code="unknown_url",
        )
    return ApiError(error.status_code, "the request is not valid")
