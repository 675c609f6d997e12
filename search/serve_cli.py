"""The command `shoplens serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import socket

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_GRACE = 30  # seconds that running requests have when the server is told to stop


def serve(
    indexes: Annotated[
        list[str],
        typer.Argument(
            metavar="INDEX…",
            help="Folders that `shoplens index` wrote, each as DIR or NAME=DIR; a folder's own "
            "name is the default.",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The encoder of all indexes, where it has another name or place by now, or one "
            "that `shoplens optimize` made of it."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Whoever asks must show the token in this file."),
    ] = None,
    feedback_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Append clicks and other feedback as JSON lines, for `upgrade --qrels`.",
        ),
    ] = None,
    thumbnails: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where small pictures are kept.",
            show_default="~/.cache/shoplens/thumbnails",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Requests in work at once.")] = 16,
    max_queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; one more gets 503 at once.")
    ] = 64,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Queries that go through the encoder together.")
    ] = 16,
    batch_wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a query waits for others.")
    ] = 2.0,
    max_body: Annotated[int, typer.Option(min=1, help="Megabytes of a request.")] = 20,
    body_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a request must have arrived.")
    ] = 30.0,
) -> None:
    """Serve indexes over HTTP: a page to search with, and an API.

    Example, on an index made with `shoplens index catalog.csv --out shop-index`:

        shoplens serve shop-index

    Then open http://127.0.0.1:8000, or ask with curl; http://127.0.0.1:8000/docs has the rest:

        curl -F image=@photo.jpg http://127.0.0.1:8000/v1/indexes/shop-index/search

    Several indexes, for others to use:

        openssl rand -hex 32 > token

        shoplens serve shoes=shoe-index mugs=mug-index --host 0.0.0.0 --token-file token

    A new version of an index, as `shoplens update` makes it, is taken up while it serves. The
    log goes to standard error as JSON lines. SIGTERM and Ctrl-C let running requests end.
    """
    import logging
    from contextlib import suppress

    from indexing.errors import MissingDependencyError
    from indexing.malloc import keep_freed_memory

    try:
        import uvicorn

        from search.server.app import create_app
    except ModuleNotFoundError as error:
        if error.name not in {"fastapi", "uvicorn", "prometheus_client", "python_multipart"}:
            raise
        raise MissingDependencyError(
            f"serve needs {error.name}: pip install 'shoplens[serve]'"
        ) from error
    from search.server.logs import log_as_json
    from search.server.metrics import Metrics
    from search.server.opening import open_engines, parse_indexes
    from search.server.security import read_token
    from search.server.settings import Settings

    folders = parse_indexes(indexes)
    settings = Settings(
        token=None if token_file is None else read_token(token_file),
        feedback_file=feedback_file,
        thumbnails=thumbnails or _cache() / "shoplens" / "thumbnails",
        threads=threads,
        max_queue=max_queue,
        max_body=max_body * 1_000_000,
        body_seconds=body_seconds,
    )
    keep_freed_memory()
    metrics = Metrics()
    engines = open_engines(
        folders,
        model=model,
        most=max_batch,
        wait=batch_wait / 1000,
        waiting=threads + max_queue,
        on_batch=metrics.on_batch,
    )
    app = create_app(engines, settings, metrics)
    listening = _listen(host, port)
    log_as_json()
    logger = logging.getLogger(__name__)
    if settings.token is None and host not in _LOOPBACK:
        logger.warning("anybody who reaches %s may search: see --token-file", host)
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving at http://%s:%d", shown, listening.getsockname()[1])
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # ours has the request's id
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def _listen(host: str, port: int) -> socket.socket:
    import socket

    from indexing.errors import ServerError

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ServerError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): give another --port "
            "or --host"
        ) from error
