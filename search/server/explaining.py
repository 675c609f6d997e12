"""Where in a product's picture its likeness to a query lies, as an overlay."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from io import BytesIO

from PIL import Image

from indexing.errors import ImageError, ModelError, QueryError
from indexing.models.protocol import Encoder
from search.explain import MatchExplanation, explain_match, overlay
from search.query import load_picture
from search.server.batching import BatchingEncoder
from search.server.errors import ApiError
from search.server.forms import ExplainForm
from search.server.schemas import ExplainAnswer, Word
from search.server.searching import asked_picture
from search.server.served import ServedVersion, Services

_SIDE = 640  # pixels of the overlay's longer side


def run_explain(services: Services, name: str, form: ExplainForm) -> ExplainAnswer:
    """Raises QueryError and its kinds, ImageError, OverloadedError and ApiError."""
    served = ServedVersion.of(name, services)
    version = served.version
    row = version.pictures(served.row_of(form.product_id))[0]
    path = version.index.images.path(row)
    if path is None:
        raise ApiError(501, "not_available", "the picture of this product is not on the server")
    picture, _ = asked_picture(served, form)
    if picture is None and form.text is None:
        raise QueryError("the query is empty: give a text, an image or both")
    try:
        shown = load_picture(path, at_least=_SIDE)
    except ImageError:
        raise ImageError("the picture of this product cannot be read any more") from None
    shown.thumbnail((_SIDE, _SIDE))
    task = partial(
        explain_match,
        query_picture=picture,
        text=form.text,
        product_picture=shown,
        minus=form.minus,
    )
    try:
        explained = _alone(version.encoder, task)
    except ModelError:
        raise ApiError(
            501, "not_available", "answers of this index's model cannot be explained"
        ) from None
    return ExplainAnswer(
        heatmap="data:image/png;base64," + _png(overlay(shown, explained.heat)),
        words=[
            Word(text=word.text, kept=word.kept, weight=word.weight) for word in explained.words
        ],
        score=explained.score,
    )


def _png(picture: Image.Image) -> str:
    out = BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _alone(encoder: Encoder, task: Callable[[Encoder], MatchExplanation]) -> MatchExplanation:
    # Gradients take memory: one explanation at a time, in turn with the queries.
    return encoder.alone(task) if isinstance(encoder, BatchingEncoder) else task(encoder)
