"""A small shop that answers as `shoplens serve` does, to test the page in a browser.

Its ranking is a toy; what it takes and gives has the names and limits of the real one, and it
refuses whatever the real one would refuse.
"""

from __future__ import annotations

import base64
import csv
import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import search

WEB = Path(search.__file__).parent / "server" / "web"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}
ONCE = {"image", "like", "crop", "text", "where", "k", "offset", "product_id"}
OFTEN = {"minus", "attribute", "facets"}


@dataclass(frozen=True)
class Product:
    id: str
    title: str
    price: float
    fields: dict[str, str]
    filled: dict[str, float]  # confidence by attribute
    picture: Path
    look: np.ndarray


@dataclass(eq=False)
class RefusedError(Exception):
    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Shop:
    """Products under the names of indexes, and what was asked of them."""

    products: list[Product]
    attributes: list[str]
    names: tuple[str, ...] = ("shop",)
    currency: str | None = "EUR"
    token: str | None = None
    good_match: bool | None = True
    proposals: list[dict[str, Any]] = field(default_factory=list)
    refusal: RefusedError | None = None  # for every search
    gate: threading.Event | None = None  # searches wait for it
    asked: list[dict[str, Any]] = field(default_factory=list)  # searches
    told: list[dict[str, Any]] = field(default_factory=list)  # feedback
    explained: list[dict[str, Any]] = field(default_factory=list)

    # What the routes answer

    def indexes(self) -> dict[str, Any]:
        prices = [product.price for product in self.products]
        info = {
            "version": 1,
            "products": len(self.products),
            "images": len(self.products),
            "encoder": "toy",
            "attributes": self.attributes,
            "fields": ["title", "price", *self.attributes],
            "price": {"min": min(prices), "max": max(prices)},
        }
        return {"indexes": [{"name": name, **info} for name in self.names], "feedback": True}

    def search(self, index: str, form: FormData, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append({"index": index, **body})
        if self.gate is not None:
            self.gate.wait(10)
        if self.refusal is not None:
            raise self.refusal
        k, offset = int(body.get("k", 24)), int(body.get("offset", 0))
        if not (1 <= k <= 200 and k + offset <= 1000):
            raise RefusedError(400, "bad_request", f"k {k}, offset {offset}")
        scored = self._scored(form, body)
        top = [product for _, product in scored[:200]]
        hits = scored[offset : offset + k]
        return {
            "request_id": f"request-{len(self.asked)}",
            "index": index,
            "version": 1,
            "took_ms": {"total": 12.0, "model": 9.0},
            "match_probability": None
            if self.good_match is None
            else 0.9
            if self.good_match
            else 0.08,
            "good_match": self.good_match,
            "hits": [
                self._hit(index, rank, score, product)
                for rank, (score, product) in enumerate(hits, start=offset + 1)
            ],
            "facets": {name: self._facet(name, top) for name in body.get("facets", [])},
            "price": {
                "min": min(product.price for product in top),
                "max": max(product.price for product in top),
            }
            if top
            else None,
            "proposals": [
                proposal
                for proposal in self.proposals
                if f"{proposal['attribute']}={proposal['value']}" not in body.get("attribute", [])
            ],
            "words": None,
        }

    def product(self, index: str, id: str) -> dict[str, Any]:
        product = self._find(id)
        pictures = [{"thumbnail": self._thumbnail(index, product), "role": "main"}]
        return {
            "product_id": product.id,
            "fields": self._fields(product),
            "filled": self._filled(product),
            "images": pictures,
        }

    def explain(self, body: dict[str, Any]) -> dict[str, Any]:
        self.explained.append(body)
        with Image.open(self._find(body["product_id"]).picture) as picture:
            width, height = picture.size
        y, x = np.mgrid[0:height, 0:width]
        distance = ((x / width - 0.5) / 0.3) ** 2 + ((y / height - 0.4) / 0.25) ** 2
        heat = np.exp(-distance)
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 3] = 255, 230 * heat**2, 180 * heat
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        words = [
            {"text": word, "kept": at % 3 != 2, "weight": 1 / (at + 1)}
            for at, word in enumerate(body.get("text", "").split())
        ]
        data = base64.b64encode(file.getvalue()).decode()
        return {"heatmap": f"data:image/png;base64,{data}", "words": words, "score": 0.83}

    def facets(self, names: list[str]) -> dict[str, Any]:
        return {"facets": {name: self._facet(name, self.products) for name in names}}

    # The toy

    def _find(self, id: str) -> Product:
        for product in self.products:
            if product.id == id:
                return product
        raise RefusedError(404, "not_found", "there is no product of this id in the index")

    def _scored(self, form: FormData, body: dict[str, Any]) -> list[tuple[float, Product]]:
        like, words = body.get("like"), body.get("text", "").lower().split()
        if "image" in body and like:
            raise RefusedError(400, "bad_request", "image and like are both the photo")
        looks = None
        if "image" in body:
            looks = look(Image.open(form["image"].file), body.get("crop"))  # type: ignore[union-attr]
        elif like:
            looks = look(Image.open(self._find(like).picture), body.get("crop"))
        elif not words:
            raise RefusedError(
                400, "bad_request", "the query is empty: give a text, an image or both"
            )
        wishes = dict(pair.split("=", 1) for pair in body.get("attribute", []))

        def score(product: Product) -> float:
            text = " ".join([product.title, *product.fields.values()]).lower()
            parts = [sum(word in text for word in words) / len(words)] if words else []
            if looks is not None:
                parts.append(1 - float(np.abs(looks - product.look).mean()) / 255)
            parts.append(-0.5 * sum(word.lower() in text for word in body.get("minus", [])))
            return 0.25 + 0.6 * sum(parts) / max(1, len(parts) - 1)

        scored = [
            (score(product), product)
            for product in self.products
            if product.id != like and fits(product, body.get("where"))
        ]
        scored.sort(key=lambda pair: -pair[0])
        return sorted(
            scored, key=lambda pair: any(pair[1].fields[n] != v for n, v in wishes.items())
        )

    def _facet(self, name: str, products: list[Product]) -> list[dict[str, Any]]:
        if name not in self.attributes:
            raise RefusedError(400, "bad_request", f"{name!r} is no attribute")
        counts = Counter(product.fields[name] for product in products)
        filled = Counter(product.fields[name] for product in products if name in product.filled)
        return [
            {"value": value, "count": count, "filled": filled[value]}
            for value, count in counts.most_common()
        ]

    def _fields(self, product: Product) -> dict[str, Any]:
        own = {name: value for name, value in product.fields.items() if name not in product.filled}
        fields = {"title": product.title, "price": product.price, **own}
        return fields if self.currency is None else {**fields, "currency": self.currency}

    def _filled(self, product: Product) -> dict[str, Any]:
        return {
            name: {"value": product.fields[name], "confidence": confidence}
            for name, confidence in product.filled.items()
        }

    def _hit(self, index: str, rank: int, score: float, product: Product) -> dict[str, Any]:
        return {
            "rank": rank,
            "product_id": product.id,
            "score": score,
            "title": product.title,
            "price": product.price,
            "currency": self.currency,
            "thumbnail": self._thumbnail(index, product),
            "fields": self._fields(product),
            "filled": self._filled(product),
            "duplicates": [],
        }

    def _thumbnail(self, index: str, product: Product) -> str:
        query = urlencode({"id": product.id, "n": 0, "size": 320, "v": "0"}, quote_via=quote)
        return f"/v1/indexes/{index}/image?{query}"


def look(picture: Image.Image, crop: str | None = None) -> np.ndarray:
    """How a picture looks to the toy: 8 x 8 colours, float [8, 8, 3] from 0 to 255."""
    rgb = picture.convert("RGB")
    if crop:
        x, y, width, height = map(float, crop.split(","))
        w, h = rgb.size
        rgb = rgb.crop((int(x * w), int(y * h), int((x + width) * w), int((y + height) * h)))
    return np.asarray(rgb.resize((8, 8), Image.Resampling.BOX), float)


def fits(product: Product, where: str | None) -> bool:
    """The filters that these tests need: prices, joined by `and`."""
    for part in (where or "").replace("(", "").replace(")", "").split(" and "):
        name, _, rest = part.partition(" ")
        sign, _, number = rest.partition(" ")
        if not part:
            continue
        if name != "price" or sign not in ("<", "<=", ">", ">="):
            raise RefusedError(
                400, "bad_where", f"where: unknown field {name!r}; the fields are price"
            )
        value, limit = product.price, float(number)
        if not {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[
            sign
        ]:
            return False
    return True


def read_shop(catalog: Path, attributes: list[str], limit: int, **settings: Any) -> Shop:
    """The shop of a CSV catalog; every fifth product's first attribute counts as filled in."""
    with catalog.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:limit]
    products = []
    for at, row in enumerate(rows):
        picture = catalog.parent / row["image"]
        with Image.open(picture) as opened:
            seen = look(opened)
        products.append(
            Product(
                id=row["id"],
                title=row["title"],
                price=float(row["price"]),
                fields={name: row[name] for name in attributes},
                filled={attributes[0]: 0.93} if at % 5 == 0 else {},
                picture=picture,
                look=seen,
            )
        )
    return Shop(products, attributes, **settings)


def app_of(shop: Shop) -> ASGIApp:
    async def indexes(request: Request) -> Response:
        return JSONResponse(shop.indexes())

    async def searched(request: Request) -> Response:
        form, body = await read_form(request, ONCE - {"product_id"})
        return JSONResponse(await in_thread(shop.search, request.path_params["name"], form, body))

    async def product(request: Request) -> Response:
        return JSONResponse(shop.product(request.path_params["name"], request.query_params["id"]))

    async def explained(request: Request) -> Response:
        _, body = await read_form(request, ONCE)
        return JSONResponse(shop.explain(body))

    async def facets(request: Request) -> Response:
        return JSONResponse(shop.facets(request.query_params.getlist("names")))

    async def image(request: Request) -> Response:
        if request.query_params["size"] not in ("160", "320", "640", "1280"):
            raise RefusedError(400, "bad_request", "size")
        data = shop._find(request.query_params["id"]).picture.read_bytes()
        return Response(data, media_type="image/jpeg")

    async def feedback(request: Request) -> Response:
        shop.told.append(await request.json())
        return Response(status_code=204)

    async def login(request: Request) -> Response:
        if (await request.json()).get("token") != shop.token:
            raise RefusedError(401, "unauthorized", "this is not the server's token")
        response = Response(status_code=204)
        response.set_cookie("shoplens_token", shop.token or "", httponly=True, samesite="strict")
        return response

    async def page(request: Request) -> Response:
        return Response((WEB / "index.html").read_bytes(), media_type="text/html")

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        body = {"code": error.code, "message": error.message, "request_id": "refused-1"}
        return JSONResponse({"error": body}, error.status, error.headers)

    index = "/v1/indexes/{name}"
    routes = [
        Route("/", page),
        Route("/v1/login", login, methods=["POST"]),
        Route("/v1/indexes", indexes),
        Route(f"{index}/search", searched, methods=["POST"]),
        Route(f"{index}/explain", explained, methods=["POST"]),
        Route(f"{index}/feedback", feedback, methods=["POST"]),
        Route(f"{index}/product", product),
        Route(f"{index}/facets", facets),
        Route(f"{index}/image", image),
        Mount("/web", StaticFiles(directory=WEB)),
    ]
    return guarded(Starlette(routes=routes, exception_handlers={RefusedError: refused}), shop)


async def in_thread(work: Any, *arguments: Any) -> Any:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(work, *arguments)


async def read_form(request: Request, once: set[str]) -> tuple[FormData, dict[str, Any]]:
    """The form and its texts; refuses names that the real server does not know."""
    form = await request.form()
    body: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in OFTEN:
            body.setdefault(name, []).append(value)
        elif name in once and name not in body:
            body[name] = await value.read() if isinstance(value, UploadFile) else value
        else:
            raise RefusedError(400, "bad_request", f"{name}: unknown or given twice")
        if isinstance(value, UploadFile):
            await value.seek(0)
    return form, body


def guarded(app: ASGIApp, shop: Shop) -> ASGIApp:
    """The app with its security headers and, where the shop has one, the token."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        if scope["type"] == "http" and shop.token is not None:
            free = scope["path"] in ("/", "/v1/login") or scope["path"].startswith("/web/")
            if not free and Request(scope).cookies.get("shoplens_token") != shop.token:
                body = {"code": "unauthorized", "message": "show the token", "request_id": "r"}
                await JSONResponse({"error": body}, 401)(scope, receive, with_headers)
                return
        await app(scope, receive, with_headers)

    return call


@contextmanager
def serving(shop: Shop) -> Iterator[str]:
    """The shop's URL, as long as it is open."""
    config = uvicorn.Config(app_of(shop), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def and_tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = and_tell  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    if not started.wait(30):
        raise TimeoutError("the shop did not open")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
