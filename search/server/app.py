"""The app: made of values that are handed in, so that a test or a shop's own server makes its own.

app = create_app({"shop": SearchEngine.open("shop-index")}, Settings(Path("thumbnails")))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from search.engine import SearchEngine
from search.server.body import BodyLimit
from search.server.context import RequestContext
from search.server.errors import add_handlers
from search.server.feedback import FeedbackFile
from search.server.metrics import Metrics
from search.server.pool import BoundedPool
from search.server.routes import feedback, products, search, service
from search.server.schemas import ErrorAnswer
from search.server.security import TokenAuth
from search.server.served import Services
from search.server.settings import Settings
from search.server.thumbnails import Thumbnails

_DESCRIPTION = (
    "Visual product search. Errors are JSON with a code, a message and a request id; with a token, "
    "send `Authorization: Bearer TOKEN`. A 503 says after how many seconds to try again."
)
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": meaning}
    for status, meaning in {
        400: "The request is not right: bad_request, bad_where or bad_image.",
        401: "The token is missing.",
        404: "There is no such index, product or picture.",
        408: "The request took too long to arrive.",
        413: "The request is too large.",
        501: "This server does not do that.",
        503: "As many requests as may are in work.",
    }.items()
}
_FORM = "application/x-www-form-urlencoded"
_THUMBNAIL_THREADS, _THUMBNAILS_WAITING = 4, 512


def create_app(
    engines: Mapping[str, SearchEngine], settings: Settings, metrics: Metrics | None = None
) -> FastAPI:
    """An app that serves these engines by name.

    `metrics` are those that the engines' encoders already report to, if any. Raises ServerError
    where the feedback file cannot be written.
    """
    metrics = metrics or Metrics()
    services = Services(
        engines=dict(engines),
        settings=settings,
        metrics=metrics,
        searches=BoundedPool("search", settings.threads, settings.max_queue),
        pictures=BoundedPool("thumbnail", _THUMBNAIL_THREADS, _THUMBNAILS_WAITING),
        thumbnails=Thumbnails(settings.thumbnails),
        feedback=None if settings.feedback_file is None else FeedbackFile(settings.feedback_file),
    )
    metrics.watch_pools(
        {
            "search": lambda: services.searches.inside,
            "thumbnail": lambda: services.pictures.inside,
        }
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        services.searches.close()
        services.pictures.close()

    middleware = [
        Middleware(RequestContext, metrics=metrics),
        Middleware(BodyLimit, most=settings.max_body, seconds=settings.body_seconds),
    ]
    if settings.token is not None:
        middleware.append(Middleware(TokenAuth, token=settings.token))
    app = _App(
        title="shoplens",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=middleware,
        lifespan=lifespan,
        form_limits={"max_files": 1, "max_fields": 300, "max_part_size": 64 << 10},
    )
    app.state.services = services
    add_handlers(app)
    for router in (search.router, products.router, feedback.router):
        app.include_router(router, responses=_ERRORS)
    app.include_router(service.router, responses={401: _ERRORS[401]})
    app.mount("/web", _Files(directory=settings.web, check_dir=False))
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The schema, with what we answer to bad parameters in place of FastAPI's own."""
        if self.openapi_schema is None:
            schema = get_openapi(
                title=self.title,
                version=self.version,
                description=self.description,
                routes=self.routes,
            )
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    _say_multipart(operation)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            schema["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"}
            }
            schema["security"] = [{}, {"token": []}]
            self.openapi_schema = schema
        return self.openapi_schema


def _say_multipart(operation: dict[str, Any]) -> None:
    """Forms may also come as multipart, and must where there is a picture."""
    content = operation.get("requestBody", {}).get("content", {})
    if _FORM in content:
        operation["requestBody"]["content"] = {"multipart/form-data": content[_FORM]} | content


class _Files(StaticFiles):
    """The page's files: asked for anew each time, and answered with 304 if they are the same."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response
