"""Where in a product's picture its likeness to a query lies, as an overlay."""

from __future__ import annotations

import base64
import importlib
import importlib.util
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from indexing.errors import ImageError, QueryError
from indexing.models.protocol import Encoder
from search.query import load_picture, query_vector
from search.server.batching import BatchingEncoder
from search.server.errors import ApiError
from search.server.forms import ExplainForm
from search.server.schemas import ExplainAnswer, Word
from search.server.searching import asked_picture
from search.server.served import ServedVersion, Services

_SIDE = 640  # pixels of the overlay's longer side
_STRONGEST = 180  # of 255: the picture is still to be seen


def run_explain(services: Services, name: str, form: ExplainForm) -> ExplainAnswer:
    """Raises QueryError and its kinds, ImageError, OverloadedError and ApiError."""
    if importlib.util.find_spec("search.explain") is None:
        raise ApiError(501, "not_available", "this server explains no answers")
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
    explained = _alone(version.encoder, partial(_explained, picture, form.text, shown))
    return ExplainAnswer(
        heatmap="data:image/png;base64," + base64.b64encode(overlay(explained.heat)).decode(),
        words=[
            Word(text=word.text, kept=word.kept, weight=word.weight) for word in explained.words
        ],
        score=float(vector @ version.index.vectors[row]),
    )


def overlay(heat: NDArray[np.float32]) -> bytes:
    """A PNG that is clear where the heat is 0, and red through orange to yellow above.

    Args:
        heat: float32 [h, w], from 0 to 1.
    """
    strength = np.clip(np.nan_to_num(heat), 0, 1)
    pixels = np.zeros((*heat.shape, 4), np.uint8)
    pixels[..., 0] = 255
    pixels[..., 1] = np.rint(230 * strength**2)
    pixels[..., 3] = np.rint(_STRONGEST * strength)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _explained(
    picture: Image.Image | None, text: str | None, shown: Image.Image, encoder: Encoder
) -> Any:
    return importlib.import_module("search.explain").explain_match(encoder, picture, text, shown)


def _alone(encoder: Encoder, task: Any) -> Any:
    # Gradients hang hooks into the network: nothing else may go through it meanwhile.
    return encoder.alone(task) if isinstance(encoder, BatchingEncoder) else task(encoder)
