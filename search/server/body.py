"""How much a request may send, and how long it may take."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.server.errors import ApiError, answer_to

# A connection that is closed while its client sends is reset, and the answer may be lost. So after
# an early answer so much is taken in and thrown away.
_LINGER_SECONDS, _LINGER_BYTES = 5.0, 64 << 20


class BodyLimit:
    """Refuses a body as soon as it is known to be too large, and one that takes too long.

    Bytes are counted as they come: a length may be missing or wrong.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, send, Headers(scope=scope), self._most, self._seconds)
        if body.says_too_large:
            error = _too_large(self._most)
            response = answer_to(error, scope["state"]["request_id"])
            await response(scope, body.receive, body.send)
        else:
            await self._app(scope, body.receive, body.send)


class _Body:
    """The two channels of one request."""

    def __init__(
        self, receive: Receive, send: Send, headers: Headers, most: int, seconds: float
    ) -> None:
        length = headers.get("content-length", "0")
        self.says_too_large = not length.isdecimal() or int(length[:20]) > most
        # A client that expects to be told first has not begun to send.
        self._sends = (length != "0" or "transfer-encoding" in headers) and "expect" not in headers
        self._receive = receive
        self._send = send
        self._most = most
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._read = 0
        self._complete = False

    async def receive(self) -> Message:
        """Raises ApiError for a byte too many, and where the time is over."""
        if self._complete:  # what comes now tells that the client went away
            return await self._receive()
        left = max(0.0, self._until - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), left)
        except asyncio.TimeoutError:
            self._sends = False
            raise ApiError(
                408,
                "timeout",
                f"the request took longer than {self._seconds:g} s to arrive: send it again",
                {"Connection": "close"},
            ) from None
        self._take(message)
        if self._read > self._most:
            raise _too_large(self._most)
        return message

    async def send(self, message: Message) -> None:
        early = self._sends and not self._complete
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if early and last:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        until, most = time.monotonic() + _LINGER_SECONDS, self._read + _LINGER_BYTES
        while not self._complete and self._read < most:
            left = max(0.0, until - time.monotonic())
            try:
                self._take(await asyncio.wait_for(self._receive(), left))
            except asyncio.TimeoutError:
                return

    def _take(self, message: Message) -> None:
        self._read += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)


def _too_large(most: int) -> ApiError:
    return ApiError(
        413,
        "too_large",
        f"the request is larger than {most:,} bytes: send a smaller picture",
        {"Connection": "close"},
    )
