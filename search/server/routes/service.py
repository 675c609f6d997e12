"""Health, metrics, login, the page and its files."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from search.server.docs import docs_page
from search.server.errors import ApiError
from search.server.schemas import Login
from search.server.security import COOKIE, Token
from search.server.served import Services, Shared

router = APIRouter(tags=["service"])

_A_YEAR = 365 * 24 * 3600


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the server is alive; needs no token.

    curl SERVER/healthz
    """
    return {"status": "alive"}


@router.get("/readyz")
async def readyz(services: Shared) -> dict[str, dict[str, int]]:
    """The versions of the indexes that answer.

    curl SERVER/readyz
    """
    sizes = await run_in_threadpool(_sizes, services)
    return {"indexes": {name: version for name, (version, _) in sizes.items()}}


@router.get("/metrics", response_class=Response)
async def metrics(services: Shared) -> Response:
    """Counters and times in the text format of Prometheus.

    curl SERVER/metrics
    """
    sizes = await run_in_threadpool(_sizes, services)
    return Response(services.metrics.render(sizes), media_type=CONTENT_TYPE_LATEST)


@router.post("/v1/login", status_code=204, response_class=Response)
async def login(given: Login, request: Request, services: Shared) -> Response:
    """Show the token once and have it as a cookie: for the page.

    curl -c cookies -H 'Content-Type: application/json' SERVER/v1/login -d '{"token": "..."}'
    """
    token = services.settings.token
    if token is not None:
        if not Token(token).fits(given.token):
            raise ApiError(401, "unauthorized", "this is not the server's token")
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            token,
            max_age=_A_YEAR,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response
    return Response(status_code=204)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    return Response(docs_page(request.app.openapi()), media_type="text/html; charset=utf-8")


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    return JSONResponse(request.app.openapi())


@router.get("/", include_in_schema=False)
async def page(services: Shared) -> Response:
    index = services.settings.web / "index.html"
    if not index.is_file():
        return RedirectResponse("/docs")
    return FileResponse(index, headers={"Cache-Control": "no-cache"})


def _sizes(services: Services) -> dict[str, tuple[int, int]]:
    """Version and products of each index; asking may open a new version."""
    indexes = {name: engine.current().index for name, engine in services.engines.items()}
    return {name: (index.manifest.version, len(index.products)) for name, index in indexes.items()}
