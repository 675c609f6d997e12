"""The config.json that makes a folder a model, and what is wrong with one."""

from __future__ import annotations

from pydantic import ValidationError

CONFIG = "config.json"


def invalid(error: ValidationError, *within: str) -> str:
    """The first thing that is wrong with a block of config.json: where, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join([*within, *map(str, first["loc"])])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
