"""Where in a product's picture its likeness to a query lies, as an overlay."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO

from indexing.errors import ImageError, ModelError, QueryError
from indexing.models.protocol import Encoder
from search.explain import MatchExplanation, explain_match, overlay
from search.query import load_picture, query_vector
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
    vector = query_vector(version.encoder, picture, form.text, form.minus)
    try:
        shown = load_picture(path, at_least=_SIDE)
    except ImageError:
        raise ImageError("the picture of this product cannot be read any more") from None
    shown.thumbnail((_SIDE, _SIDE))
    try:
        explained = _alone(
            version.encoder,
            lambda encoder: explain_match(encoder, picture, form.text, shown, form.minus),
        )
    except ModelError:  # which names the model's folder
        raise ApiError(501, "not_available", "this index's encoder cannot be explained") from None
    png = BytesIO()
    overlay(shown, explained.heat).save(png, "PNG")
    return ExplainAnswer(
        heatmap="data:image/png;base64," + base64.b64encode(png.getvalue()).decode(),
        words=[
            Word(text=word.text, kept=word.kept, weight=word.weight) for word in explained.words
        ],
        score=float(vector @ version.index.vectors[row]),
    )


def _alone(encoder: Encoder, task: Callable[[Encoder], MatchExplanation]) -> MatchExplanation:
    # Gradients take memory: one explanation at a time, in turn with the queries.
    return encoder.alone(task) if isinstance(encoder, BatchingEncoder) else task(encoder)
