"""The command, and a server as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import typer
from typer.testing import CliRunner

from indexing.errors import IndexFolderError, MissingDependencyError, ServerError
from search.client import Client
from search.demo import run_demo
from search.serve_cli import serve
from search.server.opening import parse_indexes
from tests.search.server.conftest import TOKEN


def test_names_of_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_indexes(["x/shop/", "mugs=y=z", "."]) == {
        "shop": Path("x/shop"), "mugs": Path("y=z"), tmp_path.name: Path(),
    }  # fmt: skip
    for bad in (["a=b"], ["/"], ["a/b c"], ["sh/op=x"], ["=x"], ["é=x"], ["a" * 101 + "=x"]):
        with pytest.raises(ServerError, match="is no name for an index"):
            parse_indexes(bad)
    with pytest.raises(ServerError, match="two indexes are called shop"):
        parse_indexes(["x/shop", "y/shop"])


def fails(*arguments: str) -> BaseException | None:
    app = typer.Typer()
    app.command()(serve)
    return CliRunner().invoke(app, list(arguments)).exception


def test_it_says_what_is_wrong_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(fails(str(tmp_path / "none")), IndexFolderError)
    token = fails(str(tmp_path / "none"), "--token-file", str(tmp_path / "none"))
    assert isinstance(token, ServerError)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert isinstance(fails("x"), ModuleNotFoundError | MissingDependencyError)


class Running:
    """A server in a process; its log is read as it comes."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "shoplens", "serve", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: IO[str] = self.process.stderr  # type: ignore[assignment]
        self.events: list[Any] = []
        self.url = self.until("serving at ")["message"].removeprefix("serving at ")

    def until(self, message: str) -> Any:
        for line in self.log:
            self.events.append(json.loads(line))
            if self.events[-1]["message"].startswith(message):
                return self.events[-1]
        raise AssertionError(f"{message!r} is not in {self.events}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_demo(tmp_path_factory.mktemp("demo"), products=10).index


@pytest.fixture
def server(demo: Path, tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "token").write_text(TOKEN)
    running = Running(
        f"mugs={demo}", "--port", "0", "--token-file", str(tmp_path / "token"), "--max-body", "1",
        "--feedback-file", str(tmp_path / "f.jsonl"), "--thumbnails", str(tmp_path / "thumbs"),
    )  # fmt: skip
    yield running
    running.process.kill()
    running.process.wait()
    running.log.close()


def test_it_serves_until_it_is_told_to_stop(server: Running, demo: Path) -> None:
    photo = next((demo.parent / "catalog" / "queries").iterdir())
    with Client(server.url, token=TOKEN) as shop:
        assert shop.indexes().indexes[0].name == "mugs"
        answer = shop.search("mugs", image=photo, k=3)
        assert answer.hits[0].product_id == photo.name[:9]
        assert answer.hits[0].thumbnail is not None
        assert shop.thumbnail(answer.hits[0].thumbnail).startswith(b"\xff\xd8")
        assert server.until("request")["path"] == "/v1/indexes"
        with pytest.raises(ServerError) as large:
            shop.search("mugs", image=b"x" * 1_100_000)
        assert (large.value.status, large.value.code) == (413, "too_large")
    server.process.send_signal(signal.SIGTERM)
    rest = [json.loads(line) for line in server.log]
    assert server.process.wait() in (0, -signal.SIGTERM)
    assert {413} <= {event.get("status") for event in rest}
    assert not [event for event in rest if event["level"] == "error"]


def test_slow_senders_hold_up_nobody(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(100)]
    for one in slow:
        one.sendall(
            b"POST /v1/indexes/mugs/search HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n\r\n--x"
        )
    with Client(server.url, token=TOKEN, retries=0) as shop:
        for _ in range(3):
            assert len(shop.search("mugs", text="mug", k=2).hits) == 2
    for one in slow:
        one.close()


def test_what_runs_is_finished_before_it_stops(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = b"text=mug&k=1"
    with socket.create_connection((host, int(port))) as running:
        running.sendall(
            b"POST /v1/indexes/mugs/search HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nExpect: 100-continue\r\n"
            b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
            b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
        )
        assert running.recv(1 << 16).startswith(b"HTTP/1.1 100")  # the server waits for the body
        server.process.send_signal(signal.SIGTERM)
        server.until("Shutting down")
        running.sendall(body)
        answer = b""
        while part := running.recv(1 << 16):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"product_id":"DEMO-' in answer
    reader = threading.Thread(target=lambda: list(server.log))
    reader.start()
    assert server.process.wait() in (0, -signal.SIGTERM)
    reader.join()


def test_a_port_that_is_taken(demo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = fails(str(demo), "--port", str(taken.getsockname()[1]))
    assert isinstance(error, ServerError)
    assert "cannot be listened on" in str(error)
