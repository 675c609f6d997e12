"""Errors as clients see them: JSON with a code, a message and the id of the request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from indexing.errors import ImageError, OverloadedError, QueryError, ShoplensError, WhereError

logger = logging.getLogger(__name__)

Code = Literal[
    "bad_request", "bad_where", "bad_image", "not_found", "unauthorized", "too_large", "timeout",
    "overloaded", "not_available", "internal",
]  # fmt: skip

RETRY_AFTER = "1"  # seconds: a full queue is worked off in less
_CODES: dict[int, Code] = {
    401: "unauthorized", 404: "not_found", 408: "timeout", 413: "too_large", 501: "not_available",
    503: "overloaded",
}  # fmt: skip


class ApiError(HTTPException):
    """An answer that is an error. FastAPI hands HTTPExceptions on from wherever they come."""

    def __init__(
        self, status: int, code: Code, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.code = code


def not_found(message: str) -> ApiError:
    return ApiError(404, "not_found", message)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "bad_request", message)


def error_response(
    status: int,
    code: Code,
    message: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The JSON of an error."""
    body = {"error": {"code": code, "message": message, "request_id": request_id}}
    return JSONResponse(body, status, dict(headers or {}))


def answer_to(error: Exception, request_id: str) -> JSONResponse:
    """What a client is told of an error: its own mistakes in full, ours as an id in the log."""
    match error:
        case ApiError():
            return error_response(
                error.status_code, error.code, error.detail, request_id, error.headers
            )
        case WhereError():
            return error_response(400, "bad_where", str(error), request_id)
        case ImageError():
            return error_response(400, "bad_image", str(error), request_id)
        case QueryError():
            return error_response(400, "bad_request", str(error), request_id)
        case OverloadedError():
            headers = {"Retry-After": RETRY_AFTER}
            return error_response(503, "overloaded", str(error), request_id, headers)
        case RequestValidationError():
            return error_response(400, "bad_request", _faults(error), request_id)
        case HTTPException():
            code = _CODES.get(error.status_code, "bad_request")
            return error_response(
                error.status_code, code, str(error.detail), request_id, error.headers
            )
        case _:
            logger.error("request %s failed", request_id, exc_info=error)
            message = f"the server failed; its log says why under {request_id}"
            return error_response(500, "internal", message, request_id)


def add_handlers(app: FastAPI) -> None:
    """Makes the app answer with `answer_to`."""

    def handle(request: Request, error: Exception) -> JSONResponse:
        return answer_to(error, request.state.request_id)

    for kind in (HTTPException, RequestValidationError, ShoplensError):
        app.add_exception_handler(kind, handle)


def _faults(error: RequestValidationError) -> str:
    """What is wrong with which part, without a copy of what was sent."""
    faults = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"][1:]) or str(fault["loc"][0])
        faults.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
    return "; ".join(faults)
