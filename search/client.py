"""A client of `shoplens serve`.

with Client("http://127.0.0.1:8000") as shop:
    for hit in shop.search("shop-index", image="photo.jpg", where="price < 50").hits:
        print(hit.product_id, hit.score, hit.title)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from indexing.errors import MissingDependencyError, ServerError
from search.server.schemas import (
    DEFAULT_K,
    Action,
    ErrorAnswer,
    ExplainAnswer,
    FacetsAnswer,
    FacetValue,
    Feedback,
    IndexList,
    ProductAnswer,
    SearchAnswer,
)

try:
    import httpx
except ModuleNotFoundError as missing:
    raise MissingDependencyError("Client needs httpx: pip install 'shoplens[serve]'") from missing

if TYPE_CHECKING:
    from search.fusion import Fuse
    from search.query import Crop

M = TypeVar("M", bound=BaseModel)
Form = dict[str, Any]

_LONGEST_PAUSE = 10.0  # seconds, whatever Retry-After says


class Client:
    """Asks one server; any number of threads may use it. All methods raise ServerError."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`retries`: how often an overloaded server is asked again, after it has said when."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._retries = retries
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout, transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def indexes(self) -> IndexList:
        """What can be searched."""
        return self._read(IndexList, "GET", "/v1/indexes")

    def search(
        self,
        index: str,
        *,
        image: str | Path | bytes | None = None,
        text: str | None = None,
        like: str | None = None,
        minus: str | Sequence[str] = (),
        crop: Crop | None = None,
        where: str | None = None,
        attributes: Mapping[str, str] | None = None,
        facets: Sequence[str] = (),
        k: int = DEFAULT_K,
        offset: int = 0,
        diversity: float = 0.0,
        fuse: Fuse = "max",
        collapse: bool = False,
        rerank: bool = True,
        explain: bool = False,
    ) -> SearchAnswer:
        """Products nearest to a picture, a text or both.

        `image` is a path or a picture file's bytes; `like` is a product whose main picture
        stands for it. `k` and `offset` make pages. With `explain` the words come that the
        encoder keeps. The rest is as in `SearchEngine.search`.
        """
        form = _query(image, text, like, minus, crop)
        form |= {
            "where": where,
            "attribute": [f"{name}={value}" for name, value in (attributes or {}).items()],
            "facets": list(facets),
            "k": k,
            "offset": offset,
            "diversity": diversity,
            "fuse": fuse,
            "collapse": collapse,
            "rerank": rerank,
            "explain": explain,
        }
        return self._read(SearchAnswer, "POST", _path(index, "search"), form=form)

    def similar(
        self, index: str, product_id: str, *, k: int = DEFAULT_K, offset: int = 0
    ) -> SearchAnswer:
        """Products that look like one of the index."""
        params = {"id": product_id, "k": k, "offset": offset}
        return self._read(SearchAnswer, "GET", _path(index, "similar"), params=params)

    def product(self, index: str, product_id: str) -> ProductAnswer:
        """All that an index knows of a product."""
        return self._read(ProductAnswer, "GET", _path(index, "product"), params={"id": product_id})

    def facets(
        self, index: str, names: Sequence[str], where: str | None = None
    ) -> dict[str, list[FacetValue]]:
        """The values of attributes among all products, or those that match a filter."""
        params: Form = {"names": list(names)} | ({} if where is None else {"where": where})
        return self._read(FacetsAnswer, "GET", _path(index, "facets"), params=params).facets

    def explain(
        self,
        index: str,
        product_id: str,
        *,
        image: str | Path | bytes | None = None,
        text: str | None = None,
        like: str | None = None,
        minus: str | Sequence[str] = (),
        crop: Crop | None = None,
    ) -> ExplainAnswer:
        """Where in a product's picture its likeness to a query lies, and which words count."""
        form = _query(image, text, like, minus, crop) | {"product_id": product_id}
        return self._read(ExplainAnswer, "POST", _path(index, "explain"), form=form)

    def feedback(
        self, index: str, answer: SearchAnswer, product_id: str, rank: int, action: Action
    ) -> None:
        """Say what somebody did with a product of an answer."""
        event = Feedback(
            request_id=answer.request_id, product_id=product_id, rank=rank, action=action
        )
        self._ask("POST", _path(index, "feedback"), json=event.model_dump())

    def thumbnail(self, url: str) -> bytes:
        """The JPEG file that a `thumbnail` of an answer names."""
        return self._ask("GET", url).content

    def _read(self, model: type[M], method: str, path: str, **options: Any) -> M:
        response = self._ask(method, path, **options)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise ServerError(
                f"{self._http.base_url} does not answer as this shoplens expects: is it another "
                "version or another server?",
                status=response.status_code,
            ) from error

    def _ask(
        self, method: str, path: str, *, form: Form | None = None, **options: Any
    ) -> httpx.Response:
        if form is not None:
            image = form.pop("image", None)
            options["data"] = {name: value for name, value in form.items() if value is not None}
            options["files"] = None if image is None else {"image": ("query", image)}
        for left in range(self._retries, -1, -1):
            try:
                response = self._http.request(method, path, **options)
            except httpx.HTTPError as error:
                raise ServerError(
                    f"{self._http.base_url} gives no answer ({type(error).__name__}: {error}): "
                    "is the server running?"
                ) from error
            if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or not left:
                break
            time.sleep(_pause(response))
        if response.is_success:
            return response
        try:
            found = ErrorAnswer.model_validate_json(response.content).error
        except ValidationError:
            raise ServerError(
                f"{self._http.base_url} answers with status {response.status_code}",
                status=response.status_code,
            ) from None
        raise ServerError(
            found.message,
            status=response.status_code,
            code=found.code,
            request_id=found.request_id,
        )


def _path(index: str, what: str) -> str:
    return f"/v1/indexes/{quote(index, safe='')}/{what}"


def _query(
    image: str | Path | bytes | None,
    text: str | None,
    like: str | None,
    minus: str | Sequence[str],
    crop: Crop | None,
) -> Form:
    return {
        "image": image if image is None or isinstance(image, bytes) else Path(image).read_bytes(),
        "text": text,
        "like": like,
        "minus": [minus] if isinstance(minus, str) else list(minus),
        "crop": None if crop is None else ",".join(map(repr, crop)),
    }


def _pause(response: httpx.Response) -> float:
    try:
        return min(max(0.0, float(response.headers.get("retry-after", "1"))), _LONGEST_PAUSE)
    except ValueError:
        return 1.0
