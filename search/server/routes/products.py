"""The indexes, their products, and the products' pictures."""

from __future__ import annotations

import logging
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BeforeValidator

from indexing.errors import ImageError
from search.server.errors import not_found
from search.server.schemas import IndexInfo, IndexList, ProductAnswer, ProductId
from search.server.served import (
    DEFAULT_SIZE,
    HASH,
    IndexName,
    ServedVersion,
    Services,
    Shared,
)
from search.server.thumbnails import MEDIA_TYPE, Size

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/indexes", tags=["products"])

_FOR_EVER = "max-age=31536000, immutable"


@router.get("")
async def indexes(services: Shared) -> IndexList:
    """What can be searched, and by which names.

    curl SERVER/v1/indexes
    """
    return await services.searches.run(partial(_indexes, services))


@router.get("/{name}/product")
async def product(
    name: IndexName,
    id: Annotated[ProductId, Query(description="The merchant's product id.")],
    services: Shared,
) -> ProductAnswer:
    """All that an index knows of a product.

    curl -G --data-urlencode 'id=DEMO-0007' SERVER/v1/indexes/NAME/product
    """
    return await services.searches.run(
        lambda: ServedVersion.of(name, services).product(id),
    )


@router.get(
    "/{name}/image",
    response_class=Response,
    responses={200: {"content": {MEDIA_TYPE: {}}}, 304: {"description": "It has not changed."}},
)
async def image(
    name: IndexName,
    id: Annotated[ProductId, Query(description="The merchant's product id.")],
    request: Request,
    services: Shared,
    n: Annotated[int, Query(ge=0, le=1_000, description="Which picture; 0 is the main one.")] = 0,
    size: Annotated[
        Size, BeforeValidator(int), Query(description="Pixels of the longer side.")
    ] = DEFAULT_SIZE,
    v: Annotated[
        str | None, Query(max_length=64, description="As in an answer's `thumbnail`.")
    ] = None,
) -> Response:
    """A product's picture, made small. With the right `v` it may be kept for ever.

    curl -G --data-urlencode 'id=DEMO-0007' -d size=640 SERVER/v1/indexes/NAME/image -o small.jpg
    """
    known = request.headers.get("if-none-match", "")
    return await services.pictures.run(partial(_image, services, name, id, n, size, v, known))


def _indexes(services: Services) -> IndexList:
    found: list[IndexInfo] = [ServedVersion.of(name, services).info() for name in services.engines]
    return IndexList(indexes=found, feedback=services.feedback is not None)


def _image(
    services: Services, name: str, product_id: str, n: int, size: Size, v: str | None, known: str
) -> Response:
    served = ServedVersion.of(name, services)
    pictures = served.pictures(served.row_of(product_id))
    picture = pictures[n] if n < len(pictures) else None
    if picture is None or picture.path is None:
        raise not_found("the product has no such picture on the server")
    tag = f'"{picture.sha256[:HASH]}-{size}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if v == picture.sha256[:HASH]:
        # Behind a token it is for the browser that showed it and for nobody on the way.
        whose = "public" if services.settings.token is None else "private"
        headers["Cache-Control"] = f"{whose}, {_FOR_EVER}"
    if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
        return Response(status_code=304, headers=headers)
    try:
        thumbnail = services.thumbnails.get(picture.path, picture.sha256, size)
    except ImageError as error:
        logger.warning("no thumbnail of product %r: %s", product_id, error)
        raise not_found("the picture cannot be read any more") from None
    services.metrics.thumbnails.labels("kept" if thumbnail.cached else "made").inc()
    if not thumbnail.current:  # the file is another than the one that was indexed
        headers = {"Cache-Control": "no-store"}
    return Response(thumbnail.data, media_type=MEDIA_TYPE, headers=headers)
