"""Search, similar products, explanations and facets."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request

from indexing.errors import QueryError
from search.server.explaining import run_explain
from search.server.forms import ExplainForm, SearchForm
from search.server.schemas import (
    DEFAULT_K,
    MAX_DEPTH,
    MAX_NAMES,
    MAX_TEXT,
    MAX_WHERE,
    ExplainAnswer,
    FacetsAnswer,
    K,
    Offset,
    ProductId,
    SearchAnswer,
)
from search.server.searching import run_search, run_similar
from search.server.served import IndexName, ServedVersion, Services, Shared, facets_of

router = APIRouter(prefix="/v1/indexes/{name}", tags=["search"])

Id = Annotated[ProductId, Query(description="The merchant's product id.")]


@router.post("/search")
async def search(
    name: IndexName, form: Annotated[SearchForm, Form()], request: Request, services: Shared
) -> SearchAnswer:
    """Find products by photo, by words, or by both.

    curl -F image=@photo.jpg -F text='but red' -F where='price < 50' SERVER/v1/indexes/NAME/search
    """
    request.state.log = _shape(name, form)
    work = partial(run_search, services, name, form, request.state.request_id)
    return await services.searches.run(work)


@router.get("/similar")
async def similar(
    name: IndexName,
    id: Id,
    request: Request,
    services: Shared,
    k: K = DEFAULT_K,
    offset: Offset = 0,
) -> SearchAnswer:
    """Find products that look like one of the index.

    curl -G --data-urlencode 'id=DEMO-0007' SERVER/v1/indexes/NAME/similar
    """
    if k + offset > MAX_DEPTH:
        raise QueryError(f"k + offset is {k + offset}: at most {MAX_DEPTH:,}")
    request.state.log = {"index": name, "k": k, "offset": offset}
    work = partial(run_similar, services, name, id, k, offset, request.state.request_id)
    return await services.searches.run(work)


@router.post("/explain")
async def explain(
    name: IndexName, form: Annotated[ExplainForm, Form()], request: Request, services: Shared
) -> ExplainAnswer:
    """Show which part of a product's main picture made it match, and which words counted.

    curl -F text='red mug' -F product_id=DEMO-0007 SERVER/v1/indexes/NAME/explain
    """
    request.state.log = _shape(name, form)
    return await services.searches.run(partial(run_explain, services, name, form))


@router.get("/facets")
async def facets(
    name: IndexName,
    names: Annotated[
        list[Annotated[str, Query(max_length=MAX_TEXT)]],
        Query(min_length=1, max_length=MAX_NAMES, description="Attributes; may be repeated."),
    ],
    services: Shared,
    where: Annotated[str | None, Query(max_length=MAX_WHERE, description="A filter.")] = None,
) -> FacetsAnswer:
    """Count the values of attributes among all products, or those that match a filter.

    curl -G -d names=color --data-urlencode 'where=price < 50' SERVER/v1/indexes/NAME/facets
    """
    return await services.searches.run(partial(_facets, services, name, names, where or None))


def _facets(services: Services, name: str, names: list[str], where: str | None) -> FacetsAnswer:
    served = ServedVersion.of(name, services)
    counts = served.engine.facets(names, where, version=served.version)
    return FacetsAnswer(facets=facets_of(counts))


def _shape(name: str, form: SearchForm) -> dict[str, object]:
    """What the log says of a query: its form, and not what somebody looks for."""
    return {
        "index": name,
        "k": form.k,
        "offset": form.offset,
        "image_bytes": None if form.image is None else form.image.size,
        "text_length": len(form.text or ""),
        "where": form.where is not None,
    }
