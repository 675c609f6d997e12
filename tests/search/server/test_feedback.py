from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.upgrade_queries import read_queries
from indexing.errors import BenchmarkError, ServerError
from search.server.feedback import Asked, FeedbackFile, RecentQueries
from tests.search.server.conftest import Serve, code, picture

SEARCH, FEEDBACK = "/v1/indexes/shop/search", "/v1/indexes/shop/feedback"


def event(answer: Any, product: str = "b", action: str = "click") -> dict[str, Any]:
    request_id = answer.json()["request_id"]
    return {"request_id": request_id, "product_id": product, "rank": 2, "action": action}


def test_a_line_an_event_that_bench_reads(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "below" / "feedback.jsonl"
    client = serve(feedback_file=file)
    assert client.get("/v1/indexes").json()["feedback"] is True
    mug = client.post(SEARCH, data={"text": "mug\n", "where": "price < 60"})
    sock = client.post(SEARCH, data={"text": "sock"})
    photo = client.post(SEARCH, files={"image": picture("blue")}, data={"text": "mug"})
    like = client.get("/v1/indexes/shop/similar", params={"id": "b"})
    for given in (
        event(mug), event(mug, "r/1 ?&é", "buy"), event(sock, "b", "bad"), event(sock, "g", "cart"),
        event(photo), event(like, "g"),
    ):  # fmt: skip
        assert client.post(FEEDBACK, json=given).status_code == 204
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0].pop("time").endswith("+00:00")
    assert lines[0] == {
        "request_id": mug.json()["request_id"], "index": "shop", "version": 1, "query": "mug\n",
        "image_sha256": None, "like": None, "minus": [], "where": "price < 60",
        "product_id": "b", "rank": 2, "action": "click",
    }  # fmt: skip
    assert len(lines[4]["image_sha256"]) == 64
    assert (lines[5]["query"], lines[5]["like"]) == (None, "b")
    assert [(query.text, query.right) for query in read_queries(file)] == [
        ("mug\n", {"b", "r/1 ?&é"}),
        ("sock", {"g"}),
    ]


def test_what_is_refused(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "feedback.jsonl"
    client = serve(feedback_file=file)
    answer = client.post(SEARCH, data={"text": "mug"})
    for change, expected in (
        ({"request_id": "unknown"}, (404, "not_found")),
        ({"product_id": "zzz"}, (404, "not_found")),
        ({"action": "steal"}, (400, "bad_request")),
        ({"rank": 0}, (400, "bad_request")),
        ({"more": 1}, (400, "bad_request")),
    ):
        assert code(client.post(FEEDBACK, json=event(answer) | change)) == expected
    other = client.post("/v1/indexes/other/feedback", json=event(answer))
    assert code(other) == (404, "not_found")
    assert file.read_text() == ""
    without = serve()
    assert code(without.post(FEEDBACK, json=event(answer))) == (501, "not_available")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="cannot be written"):
        FeedbackFile(tmp_path / "file" / "below")


def test_the_oldest_query_is_forgotten_first() -> None:
    recent = RecentQueries(2)
    for name in "abc":
        recent.remember(name, Asked(name, 1))
    assert recent.get("a") is None
    assert [recent.get(name) for name in "bc"] == [Asked("b", 1), Asked("c", 1)]


@pytest.mark.parametrize("content", ["{", "[]\n", '{"query": "x"}\n', '{"query": "", "x": 1}'])
def test_files_that_are_no_feedback(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(BenchmarkError, match="line 1 is no feedback"):
        read_queries(tmp_path / "x.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BenchmarkError, match="holds no text"):
        read_queries(tmp_path / "empty.jsonl")
