from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
from openapi_spec_validator import validate
from starlette.testclient import TestClient


@pytest.fixture
def schema(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def test_it_is_valid(schema: Any) -> None:
    validate(schema)


def test_each_operation_has_a_command_and_its_errors(schema: Any) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            assert "curl " in operation["description"], path
            assert "401" in operation["responses"], path
            assert "422" not in operation["responses"], path
            if path.startswith("/v1/indexes"):
                assert {"400", "404", "413", "503"} <= set(operation["responses"]), path
    assert "HTTPValidationError" not in schema["components"]["schemas"]


def test_a_search_is_a_form_of_either_kind(schema: Any) -> None:
    body = schema["paths"]["/v1/indexes/{name}/search"]["post"]["requestBody"]["content"]
    assert list(body) == ["multipart/form-data", "application/x-www-form-urlencoded"]
    fields = schema["components"]["schemas"]["SearchForm"]["properties"]
    assert set(fields) == {
        "image", "text", "minus", "crop", "like", "where", "attribute", "facets", "k", "offset",
        "diversity", "fuse", "collapse", "rerank", "explain",
    }  # fmt: skip
    assert "example" in schema["components"]["schemas"]["SearchForm"]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_of_the_api_fits_the_policy(client: TestClient, schema: Any) -> None:
    text = client.get("/docs").text
    page = Tags()
    page.feed(text)
    tags = [tag for tag, _ in page.seen]
    assert not {"script", "style"} & set(tags)
    assert not any("style" in attributes for _, attributes in page.seen)
    links = [attributes["href"] for tag, attributes in page.seen if tag == "link"]
    assert [client.get(link).status_code for link in links] == [200]
    for path in schema["paths"]:
        assert path in text
    assert "curl -F image=@photo.jpg" in text
