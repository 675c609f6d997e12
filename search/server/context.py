"""What every request gets: an id, headers that keep browsers careful, a log line, a count."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.server.errors import answer_to
from search.server.metrics import Metrics

logger = logging.getLogger("search.server.access")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class RequestContext:
    """The outermost middleware; also where an error that nobody foresaw becomes JSON."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Never the client's own: feedback finds its query by this.
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def mark(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, mark)
        except Exception as error:  # noqa: BLE001
            response = answer_to(error, request_id)
            if not status:
                await response(scope, receive, mark)
        finally:
            self._note(scope, status, time.perf_counter() - start, request_id)

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "") or "none"  # not the path: it has ids
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        client = scope.get("client")
        fields = {
            "request_id": request_id,
            "method": method,
            "path": scope["path"],
            "status": status,  # 0: the client went away
            "ms": round(seconds * 1000, 1),
            "client": client[0] if client else None,
            **scope["state"].get("log", {}),
        }
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        logger.log(level, "request", extra={"fields": fields})
