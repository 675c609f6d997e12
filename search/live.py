"""An index that follows its folder: a new version is taken up as soon as it is committed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread

from indexing.errors import IndexFolderError, ModelError
from indexing.manifest import MANIFEST, Manifest, may_ask, read_manifest
from indexing.models import load_encoder
from indexing.models.protocol import Encoder
from indexing.store import OpenIndex, open_index

logger = logging.getLogger(__name__)

# More new bytes than this are read and checked in the background, while the old version answers.
LARGE = 64 << 20

Stamp = tuple[int, int, int]
Load = Callable[[str], Encoder]


class LiveIndex:
    """The newest version of an index that can be opened, with the encoder that asks it: the
    one that made it, or one optimised from that.

    Any number of threads may ask for it. A version is handed out whole: whoever holds one is
    not touched by those that come later.
    """

    def __init__(self, index: OpenIndex, encoder: Encoder, load: Load | None = None) -> None:
        self._load = load
        self._folder = index.folder
        self._current = (index, encoder)
        self._stamp: Stamp | None = None  # so that what came since `index` was opened is seen
        self._lock = Lock()
        self._loading: Thread | None = None

    def current(self) -> tuple[OpenIndex, Encoder]:
        """The version that holds now.

        A new one that holds little more than the last is opened at once; a large one, or one
        of another encoder, in the background. One that cannot be opened is reported in the log
        and left alone until there is another.
        """
        stamp = _stamp(self._folder)
        if stamp is None or stamp == self._stamp:
            return self._current
        with self._lock:
            if stamp != self._stamp and (self._loading is None or not self._loading.is_alive()):
                self._follow(stamp)
        return self._current

    def wait(self) -> None:
        """Wait for a version that is being opened in the background, if there is one."""
        self.current()
        if self._loading is not None:
            self._loading.join()

    def _follow(self, stamp: Stamp) -> None:
        index, encoder = self._current
        try:
            manifest = read_manifest(self._folder)
        except IndexFolderError as error:
            logger.warning("the index stays at version %d: %s", index.manifest.version, error)
            self._stamp = stamp
            return
        if manifest == index.manifest:
            self._stamp = stamp
        elif _is_small(manifest, index, encoder):
            self._take_up(stamp, manifest)
        else:
            self._loading = Thread(
                target=self._take_up, args=(stamp, manifest), name="reload", daemon=True
            )
            self._loading.start()

    def _take_up(self, stamp: Stamp, manifest: Manifest) -> None:
        index, encoder = self._current
        try:
            if not may_ask(manifest, encoder):
                encoder = (self._load or load_encoder)(manifest.encoder.name)
            opened = open_index(self._folder, asker=encoder, before=index)
        except (IndexFolderError, ModelError) as error:
            logger.warning("the index stays at version %d: %s", index.manifest.version, error)
        else:
            self._current = (opened, encoder)
            logger.info("the index is at version %d", opened.manifest.version)
        self._stamp = stamp


def _is_small(manifest: Manifest, index: OpenIndex, encoder: Encoder) -> bool:
    known = index.manifest.segments
    new = [segment for segment in manifest.segments if segment not in known]
    size = sum(file.bytes for segment in new for file in segment.files.values())
    return may_ask(manifest, encoder) and size <= LARGE


def _stamp(folder: Path) -> Stamp | None:
    """Changes whenever the manifest is replaced; None where there is none to be seen."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
