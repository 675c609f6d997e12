"""What people did with answers."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Response

from search.server.errors import ApiError, not_found
from search.server.schemas import Feedback
from search.server.served import IndexName, ServedVersion, Services, Shared

router = APIRouter(prefix="/v1/indexes/{name}", tags=["feedback"])


@router.post("/feedback", status_code=204, response_class=Response)
async def feedback(name: IndexName, event: Feedback, services: Shared) -> Response:
    """Note a click, or that an answer was bad. The server remembers its last 20,000 queries.

    curl -H 'Content-Type: application/json' SERVER/v1/indexes/NAME/feedback -d '{"request_id":
    "...", "product_id": "DEMO-0007", "rank": 1, "action": "click"}'
    """
    await services.searches.run(partial(_note, services, name, event))
    return Response(status_code=204)


def _note(services: Services, name: str, event: Feedback) -> None:
    if services.feedback is None:
        raise ApiError(501, "not_available", "this server takes no feedback")
    asked = services.recent.get(event.request_id)
    if asked is None or asked.index != name:
        raise not_found("there was no query of this request_id, or it is long ago")
    ServedVersion.of(name, services).row_of(event.product_id)
    services.feedback.append(event.request_id, asked, event.product_id, event.rank, event.action)
