"""A small shop behind the server: plain pictures, whose cosines can be worked out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.store import open_index
from search.engine import SearchEngine
from search.server.app import create_app
from search.server.batching import BatchingEncoder
from search.server.settings import Settings

CATALOG = """id,title,price,currency,color,image,additional_image
r/1 ?&é,Red mug,5.5,EUR,Red,red.png,
b,Blue mug,50,EUR,,blue.png,magenta.png
g,Green sock,,,,lime.png,
y,Yellow sock,7,,,yellow.png,
"""
COLOURS = ("red", "blue", "magenta", "lime", "yellow")
TOKEN = "0123456789abcdef-secret"

Serve = Callable[..., TestClient]


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, form)
    return out.getvalue()


@dataclass
class Shop:
    """Where everything is, and the engine of it."""

    place: Path
    engine: SearchEngine
    encoder: Any
    clients: list[TestClient] = field(default_factory=list)

    @property
    def index(self) -> Path:
        return self.place / "index"

    def app(self, **settings: Any) -> FastAPI:
        settings.setdefault("thumbnails", self.place / "thumbnails")
        return create_app({"shop": self.engine}, Settings(**settings))


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Any, tiny_classifier: Any) -> Iterator[Shop]:
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(picture(colour, (400, 300)))
    (tmp_path / "catalog.csv").write_text(CATALOG)
    build_index(
        read_catalog(tmp_path / "catalog.csv"),
        tiny_encoder,
        tmp_path / "index",
        classifiers=[tiny_classifier],
    )
    batching = BatchingEncoder(tiny_encoder, wait=0)
    yield Shop(tmp_path, SearchEngine(open_index(tmp_path / "index"), batching), tiny_encoder)
    batching.close()


@pytest.fixture
def serve(shop: Shop) -> Iterator[Serve]:
    """Starts a server with some settings; gives a client of it."""
    running: list[TestClient] = []

    def start(**settings: Any) -> TestClient:
        client = TestClient(shop.app(**settings), raise_server_exceptions=False)
        client.__enter__()
        running.append(client)
        return client

    yield start
    for client in running:
        client.__exit__()


@pytest.fixture
def client(serve: Serve) -> TestClient:
    return serve()


def ids(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["product_id"] for hit in answer.json()["hits"]]


def code(answer: Any) -> tuple[int, str]:
    """Status and code of an error, whose form is checked."""
    error = answer.json()["error"]
    assert list(answer.json()) == ["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, error["code"]
