"""Explained answers: what the server asks of a model, and the overlay it gives."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from search.explain import MatchExplanation, MatchWord
from tests.search.server.conftest import Shop, picture

EXPLAIN = "/v1/indexes/shop/explain"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `explain_match` is called with; its left half is hot."""
    calls: list[dict[str, Any]] = []

    def explained(encoder: Any, **given: Any) -> MatchExplanation:
        calls.append({"encoder": encoder, **given})
        heat = np.zeros((30, 40), np.float32)
        heat[:, :20] = 1
        words = [MatchWord("red", True, 0.25), MatchWord("mug", False, None)]
        return MatchExplanation(0.5, heat, words)

    monkeypatch.setattr("search.server.explaining.explain_match", explained)
    return calls


def test_the_overlay_lies_over_the_products_picture(
    client: TestClient, shop: Shop, asked: list[dict[str, Any]]
) -> None:
    given = {"text": "red mug", "minus": "blue", "product_id": "b"}
    answer = client.post(EXPLAIN, data=given, files={"image": picture("lime")}).json()
    assert answer["score"] == 0.5
    assert answer["words"] == [
        {"text": "red", "kept": True, "weight": 0.25},
        {"text": "mug", "kept": False, "weight": None},
    ]
    kind, _, data = answer["heatmap"].partition(",")
    assert kind == "data:image/png;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert pixels.shape == (300, 400, 4)
    assert (pixels[:, :150] == [215, 25, 28, 178]).all()
    assert (pixels[:, 250:, 3] == 0).all()
    (call,) = asked
    assert call["encoder"] is shop.encoder
    assert (call["text"], list(call["minus"])) == ("red mug", ["blue"])
    assert call["product_picture"].getpixel((9, 9)) == (0, 0, 255)
    assert call["query_picture"].getpixel((9, 9)) == (0, 255, 0)
