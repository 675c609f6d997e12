"""The page of the API: made of the OpenAPI schema, without a script and without a CDN."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_START = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>shoplens API</title>
<link rel="stylesheet" href="/web/docs.css">
</head>
<body>
<main>
<h1>shoplens API</h1>
"""
_END = "</main>\n</body>\n</html>\n"


def docs_page(schema: dict[str, Any]) -> str:
    """All operations with their parameters and a curl command each, as HTML."""
    parts = [_START, f"<p>{escape(schema['info']['description'])}</p>\n"]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.extend(_operation(path, method, operation, schema))
    return "".join(parts) + _END


def _operation(
    path: str, method: str, operation: dict[str, Any], schema: dict[str, Any]
) -> Iterator[str]:
    yield f"<section>\n<h2><code>{method.upper()} {escape(path)}</code></h2>\n"
    text, _, command = operation.get("description", "").partition("curl ")
    yield f"<p>{escape(text.strip())}</p>\n"
    if command:
        yield f"<pre>curl {escape(' '.join(command.split()))}</pre>\n"
    fields = list(_fields(operation, schema))
    if fields:
        yield "<table>\n<tr><th>name</th><th>kind</th><th>meaning</th></tr>\n"
        for name, kind, meaning in fields:
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in (kind, meaning))
            yield f"<tr><td><code>{escape(name)}</code></td>{cells}</tr>\n"
        yield "</table>\n"
    yield "</section>\n"


def _fields(operation: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, kind and meaning of each parameter, then of each field of the body."""
    for parameter in operation.get("parameters", ()):
        yield (
            parameter["name"], _kind(parameter["schema"]), parameter.get("description", "")
        )  # fmt: skip
    for content in list(operation.get("requestBody", {}).get("content", {}).values())[:1]:
        body = content["schema"]
        if "$ref" in body:
            body = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        for name, field in body.get("properties", {}).items():
            yield name, _kind(field), field.get("description", "")


def _kind(field: dict[str, Any]) -> str:
    kinds = [one for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    names = []
    for kind in kinds:
        if "enum" in kind:
            names.append(" | ".join(str(value) for value in kind["enum"]))
        elif kind.get("type") == "array":
            names.append(f"{_kind(kind['items'])}, repeated")
        elif kind.get("format") == "binary" or "contentMediaType" in kind:
            names.append("file")
        else:
            names.append(str(kind.get("type", "object")))
    default = f" = {field['default']}" if field.get("default") not in (None, [], "") else ""
    return " | ".join(names) + default
