"""From index folders to engines that share their encoders, and batch what goes into them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from indexing.errors import ServerError
from indexing.messages import printable
from indexing.models import load_encoder
from search.engine import SearchEngine
from search.server.batching import BatchingEncoder, OnBatch

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def parse_indexes(given: Sequence[str]) -> dict[str, Path]:
    """Folder by name out of DIR and NAME=DIR. Raises ServerError for names that will not do."""
    found: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or Path(one).is_dir():
            name, folder = Path(one).resolve().name, one
        if not _NAME.fullmatch(name):
            raise ServerError(
                f"{printable(name)!r} is no name for an index: give NAME={printable(folder)}, with "
                "letters, digits, dots, dashes and underscores in NAME"
            )
        if name in found:
            raise ServerError(f"two indexes are called {name}: give one another, as in NAME=DIR")
        found[name] = Path(folder)
    return found


def open_engines(
    folders: Mapping[str, Path],
    *,
    model: str | None = None,
    most: int = 16,
    wait: float = 0.002,
    waiting: int = 256,
    on_batch: OnBatch | None = None,
) -> dict[str, SearchEngine]:
    """Opens each index; `model` is as of `SearchEngine.open`, and the other options are those of
    `BatchingEncoder`.

    Raises IndexFolderError and its kinds, and ModelError.
    """
    shared: dict[str, BatchingEncoder] | None = {}

    def load(name: str) -> BatchingEncoder:
        if shared is not None and name in shared:
            return shared[name]
        encoder = BatchingEncoder(
            load_encoder(name), most=most, wait=wait, waiting=waiting, on_batch=on_batch
        )
        if shared is not None:
            shared[name] = encoder
        return encoder

    engines = {
        name: SearchEngine.open(folder, model=model, load=load) for name, folder in folders.items()
    }
    # A later version asks because its encoder is another, maybe of the same name.
    shared = None
    return engines
