"""Who may ask: the token, in a header or in a cookie."""

from __future__ import annotations

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from indexing.errors import ServerError
from search.server.errors import ApiError, answer_to

COOKIE = "shoplens_token"
LEAST_TOKEN = 16  # characters

# The page must be there to ask for a token; it is the same for everybody and holds no data.
_OPEN = ("/", "/healthz", "/v1/login")
_OPEN_BELOW = "/web/"


def read_token(file: Path) -> str:
    """The token in a file. Raises ServerError where it is not fit to be one, or unreadable."""
    try:
        token = file.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ServerError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        token = ""
    if len(token) < LEAST_TOKEN or not all(sign.isalnum() or sign in "-._~+/=" for sign in token):
        raise ServerError(
            f"{file} holds no token: write at least {LEAST_TOKEN} letters, digits or -._~+/= "
            "into it, such as `openssl rand -hex 32` makes"
        )
    return token


class Token:
    """A token that is compared in the same time whatever is shown."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(token)

    def fits(self, shown: str) -> bool:
        return hmac.compare_digest(_digest(shown), self._digest)

    def shown_by(self, headers: Headers) -> bool:
        """Whether a request shows it, as a bearer or as a cookie."""
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.fits(bearer.strip())
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self.fits(cookie.value)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class TokenAuth:
    """Lets nobody beyond the page and the health check who does not show the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = Token(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            free = path in _OPEN or (path.startswith(_OPEN_BELOW) and ".." not in path)
            if not free and not self._token.shown_by(Headers(scope=scope)):
                error = ApiError(
                    401,
                    "unauthorized",
                    "show the server's token: `Authorization: Bearer TOKEN`",
                    {"WWW-Authenticate": "Bearer"},
                )
                await answer_to(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)
