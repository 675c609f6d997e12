"""Changing an index folder: one writer at a time, and every change all or nothing.

A change prepares a new segment, or none; `commit` renames it into place and then replaces the
manifest, which is the one moment at which the index changes. The manifests of earlier versions
stay, as far as KEPT_VERSIONS and KEPT_BASES go, with the segments that they name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from indexing.attributes.record import AttributesRecord
from indexing.durable import LOCK, flush, replace_bytes, sha256_of
from indexing.errors import IndexFolderError, IndexMismatchError
from indexing.manifest import (
    ATTRIBUTES,
    FILES,
    MANIFEST,
    REJECTS,
    SCHEMA_VERSION,
    STAGING,
    EncoderRecord,
    FileRecord,
    Manifest,
    SegmentRecord,
    parse_manifest,
    read_manifest,
    render_manifest,
)
from indexing.match_record import MatchRecord

VERSIONS = "versions"
KEPT_VERSIONS = 10  # earlier ones, as far as they rest on the newest bases
KEPT_BASES = 2  # first segments, which hold most of an index
_SEGMENTS = "s[0-9][0-9][0-9][0-9][0-9][0-9]"
_POLL = 0.2  # seconds between two looks at a lock that is waited for


@contextmanager
def locked_folder(
    folder: Path, job: str, *, lock: str = LOCK, patient: bool = False
) -> Iterator[Path]:
    """Create or enter an index folder as its only writer; gives a staging folder for `job`.

    What a job leaves there it finds again when it goes on. One that leaves nothing leaves no
    trace of its own either. `lock` is the file that excludes others; `patient` waits for them.
    Raises IndexFolderError for a folder that holds something else, that cannot be written, or
    that another process is writing.
    """
    new = not folder.exists()
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise IndexFolderError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        _take(held, folder, patient)
        try:
            staging = folder / STAGING / job
            staging.mkdir(parents=True, exist_ok=True)
            yield staging
        finally:
            _remove_unused(folder, staging, new)
    except OSError as error:
        raise IndexFolderError(
            f"{folder} cannot be written: {error}; what it held is unchanged, and the same "
            "command goes on"
        ) from error
    finally:
        os.close(held)  # which also unlocks


def _take(lock: int, folder: Path, patient: bool) -> None:
    busy = f"{folder} is being written by another process: wait for it or stop it"
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if not patient:
                raise IndexFolderError(busy) from None
            time.sleep(_POLL)
    if not os.fstat(lock).st_nlink:  # the other one has just removed it
        raise IndexFolderError(busy)


def _remove_unused(folder: Path, staging: Path, new: bool) -> None:
    """Remove staging folders that hold no file, then the lock if it is alone, and then the
    folder if it was `new`."""
    for path in (*staging.glob("*"), staging, staging.parent):
        with suppress(OSError):
            path.rmdir()
    with suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            if new:
                folder.rmdir()


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise IndexFolderError(f"{folder} is not a folder: choose another --out")
    ours = (folder / LOCK).exists() or (folder / STAGING).is_dir()
    if ours or not any(folder.iterdir()):
        return
    try:
        read_manifest(folder)
    except IndexMismatchError:
        return
    except IndexFolderError:
        raise IndexFolderError(
            f"{folder} holds other files and is no index: choose another --out or empty it"
        ) from None


def next_segment(folder: Path) -> str:
    """A name that no segment of a version has."""
    if not (folder / MANIFEST).exists():
        return "s000001"
    try:
        versions = [read_manifest(folder), *earlier_versions(folder)]
        used = [segment.name for manifest in versions for segment in manifest.segments]
    except IndexFolderError:  # of another schema, or damaged: stay clear of its files
        used = [path.name for path in folder.glob(_SEGMENTS)]
    return f"s{max((int(name[1:]) for name in used), default=0) + 1:06d}"


def next_version(
    folder: Path,
    change: str,
    encoder: EncoderRecord,
    match: MatchRecord | None,
    attributes: AttributesRecord | None,
    segments: Sequence[SegmentRecord],
    products: int,
    images: int,
) -> Manifest:
    """The manifest of the version after the committed one; no file is written."""
    last = 0
    if (folder / MANIFEST).exists():
        # One of another schema, or damaged, counts for nothing: it will be replaced.
        with suppress(IndexFolderError):
            last = read_manifest(folder).version
    return Manifest(
        schema_version=SCHEMA_VERSION,
        shoplens_version=_version(),
        created=datetime.now(timezone.utc).replace(microsecond=0),
        version=last + 1,
        change=change,
        encoder=encoder,
        match=match,
        attributes=attributes,
        segments=tuple(segments),
        products=products,
        images=images,
    )


def file_records(prepared: Path, names: Sequence[str] = FILES) -> dict[str, FileRecord]:
    """Size and hash of the files of a segment; with those of all it has, that of its products'
    attributes, too."""
    if names == FILES and (prepared / ATTRIBUTES).exists():
        names = (*FILES, ATTRIBUTES)
    return {
        name: FileRecord(sha256=sha256_of(prepared / name), bytes=(prepared / name).stat().st_size)
        for name in names
    }


def commit(folder: Path, manifest: Manifest, prepared: Mapping[str, Path] | None = None) -> None:
    """Make `manifest` the index of `folder`, all at once.

    Call it inside `locked_folder`. `prepared` names the folders with the files of segments that
    are new. Before the manifest is replaced the old version holds, afterwards the new one; then
    what no kept version needs goes away.
    """
    for name, files in (prepared or {}).items():
        for file in files.iterdir():
            flush(file)
        flush(files)
        segment = folder / name
        if segment.exists():  # left by a process that died before its commit
            shutil.rmtree(segment)
        files.rename(segment)
        flush(folder)
    _keep_manifest(folder)
    replace_bytes(folder / MANIFEST, render_manifest(manifest))
    with suppress(OSError):  # the change is made; the next one removes what is left
        remove_unneeded(folder, manifest)


def _keep_manifest(folder: Path) -> None:
    """Put the committed manifest among the versions to go back to."""
    try:
        version = read_manifest(folder).version
    except IndexFolderError:  # there is none, or none to go back to
        return
    versions = folder / VERSIONS
    if not versions.exists():
        versions.mkdir()
        flush(folder)
    replace_bytes(versions / f"{version:06d}.json", (folder / MANIFEST).read_bytes())


def earlier_versions(folder: Path) -> list[Manifest]:
    """The kept versions before the committed one, the newest first; damaged ones are left out."""
    current, found = read_manifest(folder), []
    for path in sorted((folder / VERSIONS).glob("[0-9]*.json"), reverse=True):
        with suppress(IndexFolderError, OSError):
            manifest = parse_manifest(path.read_bytes(), path)
            if manifest.version < current.version:
                found.append(manifest)
    return found


def remove_unneeded(folder: Path, current: Manifest) -> None:
    """Remove versions beyond those that are kept, and segments that none of them names.

    Readers keep what they have mapped.
    """
    kept, bases = [current], [current.segments[0].name]
    for manifest in earlier_versions(folder):
        base = manifest.segments[0].name
        if base not in bases and len(bases) < KEPT_BASES:
            bases.append(base)
        if base in bases and len(kept) <= KEPT_VERSIONS:
            kept.append(manifest)
    names = {f"{manifest.version:06d}.json" for manifest in kept}
    versions = folder / VERSIONS
    for path in versions.glob("*"):
        if path.name not in names:
            path.unlink()
    if versions.exists():
        flush(versions)  # before the segments: no version may name one that is gone
    needed = {segment.name for manifest in kept for segment in manifest.segments}
    for old in folder.glob(_SEGMENTS):
        if old.name not in needed:
            shutil.rmtree(old, ignore_errors=True)
    (folder / REJECTS).unlink(missing_ok=True)


def roll_back(folder: Path, version: int | None = None) -> Manifest:
    """Make an earlier version hold again, as a new one; by default the last before.

    Raises IndexFolderError for a version that is not kept, and as `open_index` does where its
    files are not whole.
    """
    from indexing.store import open_version

    read_manifest(folder)  # which says why where there is none
    with locked_folder(folder, "rollback"):
        current, earlier = read_manifest(folder), earlier_versions(folder)
        wanted = next((m for m in earlier if version is None or m.version == version), None)
        if wanted is None:
            kept = ", ".join(str(manifest.version) for manifest in earlier) or "none"
            asked = "an earlier version" if version is None else f"version {version}"
            raise IndexFolderError(
                f"{folder} is at version {current.version} and keeps no files of {asked}: "
                f"kept are {kept}"
            )
        open_version(folder, wanted)
        manifest = next_version(
            folder,
            f"rollback to version {wanted.version}",
            wanted.encoder,
            wanted.match,
            wanted.attributes,
            wanted.segments,
            wanted.products,
            wanted.images,
        )
        commit(folder, manifest)
    return manifest


def _version() -> str:
    try:
        return installed_version("shoplens")
    except PackageNotFoundError:  # run from its source without being installed
        return "source"
