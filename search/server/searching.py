"""A search from its form to its answer, in one of the pool's threads."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import asdict
from functools import partial

from PIL.Image import Image

from indexing.cleaning import clean
from indexing.errors import ImageError, ModelError
from indexing.images import MAX_BYTES, read_bytes
from indexing.models.albef.encoder import AlbefEncoder
from indexing.models.clip import ClipEncoder
from indexing.models.protocol import Encoder
from search.hits import Answers, Hit
from search.server.batching import BatchingEncoder, model_time
from search.server.feedback import Asked
from search.server.forms import SearchForm
from search.server.query_pictures import query_picture
from search.server.schemas import Milliseconds, Proposed, SearchAnswer, Word
from search.server.served import ServedVersion, Services, facets_of, price_range

logger = logging.getLogger(__name__)


def run_search(services: Services, name: str, form: SearchForm, request_id: str) -> SearchAnswer:
    """Raises QueryError and its kinds, ImageError, OverloadedError and ApiError."""
    start = time.perf_counter()
    served = ServedVersion.of(name, services)
    with model_time() as spent:
        picture, sha256 = asked_picture(served, form)
        wanted = form.k + form.offset
        answers = served.engine.search(
            image=picture,
            text=form.text,
            k=wanted + (form.like is not None),
            where=form.where,
            minus=form.minus,
            fuse=form.fuse,
            collapse=form.collapse,
            diversity=form.diversity,
            attributes=form.wishes(),
            rerank=form.rerank,
            facets=form.facets,
            prices=True,
            version=served.version,
        )
        words = None
        if form.explain and form.text is not None:
            words = pruned_words(served.version.encoder, form.text)
    hits = [hit for hit in answers if hit.product_id != form.like][form.offset : wanted]
    services.recent.remember(
        request_id,
        Asked(
            index=name,
            version=served.number,
            query=form.text,
            image_sha256=sha256,
            like=form.like,
            minus=tuple(form.minus),
            where=form.where,
        ),
    )
    took = Milliseconds(
        total=_milliseconds(time.perf_counter() - start), model=_milliseconds(sum(spent))
    )
    return _answer(served, answers, hits, form.offset, request_id, took, words)


def run_similar(
    services: Services, name: str, product_id: str, k: int, offset: int, request_id: str
) -> SearchAnswer:
    """Products like one of the index. Raises QueryError and ApiError."""
    start = time.perf_counter()
    served = ServedVersion.of(name, services)
    served.row_of(product_id)
    answers = served.engine.similar(product_id, k + offset, version=served.version)
    services.recent.remember(request_id, Asked(index=name, version=served.number, like=product_id))
    took = Milliseconds(total=_milliseconds(time.perf_counter() - start), model=0.0)
    return _answer(served, answers, answers[offset:], offset, request_id, took, None)


def asked_picture(served: ServedVersion, form: SearchForm) -> tuple[Image | None, str | None]:
    """The picture that a query shows, and the SHA-256 of its file.

    Raises ImageError and QueryError.
    """
    if form.image is not None:
        data = form.image.file.read(MAX_BYTES + 1)
    elif form.like is not None:
        path = served.pictures(served.row_of(form.like))[0].path
        if path is None:
            raise ImageError(
                "the picture of this product is not on the server: see /similar for others like it"
            )
        try:
            data = read_bytes(path)
        except ImageError as error:
            logger.warning("the picture of product %r: %s", form.like, error)
            raise ImageError("the picture of this product cannot be read any more") from None
    else:
        return None, None
    picture = query_picture(data, form.box(), served.version.encoder.image_size)
    return picture, hashlib.sha256(data).hexdigest()


def pruned_words(encoder: Encoder, text: str) -> list[Word] | None:
    """The words of a text with what the encoder keeps of them; None where it drops none."""
    if isinstance(encoder, BatchingEncoder):
        return encoder.alone(partial(pruned_words, text=text))
    if not isinstance(encoder, (ClipEncoder, AlbefEncoder)) or encoder.pruning is None:
        return None
    try:
        words = clean(encoder, [text])[0]
    except ModelError as error:
        logger.info("no words of a text: %s", error)
        return None
    return [Word(text=word.text, kept=word.kept) for word in words]


def _answer(
    served: ServedVersion,
    answers: Answers,
    hits: list[Hit],
    offset: int,
    request_id: str,
    took: Milliseconds,
    words: list[Word] | None,
) -> SearchAnswer:
    return SearchAnswer(
        request_id=request_id,
        index=served.name,
        version=served.number,
        took_ms=took,
        match_probability=answers.match_probability,
        good_match=answers.good_match,
        hits=[served.found(hit, rank) for rank, hit in enumerate(hits, start=offset + 1)],
        facets=facets_of(answers.facets),
        price=price_range(answers.prices),
        proposals=[Proposed(**asdict(proposal)) for proposal in answers.proposals],
        words=words,
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 2)
