"""Whether an index survives anything: `python -m benchmarks.faults`.

Every command that writes (a first build, a rebuild, an update, a delete, a compaction, a
rollback) runs in a process of its own under `strace`, which at the n-th call of a kind kills it
(KILL), tells it that the disk is full (ENOSPC) or that it failed (EIO), for every n and every
kind of call. After each, opening the folder must give the old version or the new one, and the
same command again the new one.

With --flips, bytes of every file are flipped and files are cut short, which opening must refuse.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.systems import PixelEncoder
from indexing.build import build_index
from indexing.catalog import read_catalog
from indexing.committing import roll_back
from indexing.compact import compact
from indexing.errors import BenchmarkError, IndexFolderError, ShoplensError
from indexing.faiss_import import import_faiss
from indexing.manifest import MANIFEST, read_manifest
from indexing.store import open_index
from indexing.update import delete_products, update_index

CALLS = ("write", "fsync", "rename", "unlink", "unlinkat", "mkdir", "rmdir")
FAULTS = {"KILL": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
_NOTHING = "nothing"  # the state of a folder without an index
_PRODUCTS = 6

Job = Callable[[Path], None]  # works on a folder with catalogs and `index`


def _index(catalog: str) -> Job:
    return lambda place: _quiet(
        build_index(read_catalog(place / catalog), PixelEncoder(), place / "index")
    )


def _update(place: Path) -> None:
    update_index(read_catalog(place / "changes.csv"), PixelEncoder(), place / "index")


def _quiet(_: object) -> None:
    """For a lambda that is to return nothing."""


# What runs before, and what is broken.
JOBS: dict[str, tuple[list[Job], Job]] = {
    "first build": ([], _index("old.csv")),
    "rebuild": ([_index("old.csv")], _index("new.csv")),
    "update": ([_index("old.csv")], _update),
    "delete": ([_index("old.csv")], lambda place: _quiet(delete_products(place / "index", ["p1"]))),
    "compact": ([_index("old.csv"), _update], lambda place: _quiet(compact(place / "index"))),
    "rollback": ([_index("old.csv"), _update], lambda place: _quiet(roll_back(place / "index"))),
}


def make_shop(place: Path) -> None:
    """Pictures and three catalogs: old.csv, new.csv and the changes between them."""
    titles = {"old.csv": "old", "new.csv": "new", "changes.csv": "changed"}
    for number in range(_PRODUCTS + 2):
        picture = Image.linear_gradient("L").rotate(40 * number).resize((16, 16))
        picture.convert("RGB").save(place / f"{number}.png")
    for name, title in titles.items():
        numbers = range(2, _PRODUCTS + 2) if name == "changes.csv" else range(_PRODUCTS)
        rows = [f"p{number},{title} {number},{number}.png" for number in numbers]
        (place / name).write_text("\n".join(["id,title,image", *rows]) + "\n", encoding="utf-8")


def state_of(folder: Path) -> str:
    """A digest of what an index holds: ids, fields and vectors. Raises IndexFolderError."""
    if not (folder / MANIFEST).exists():
        return _NOTHING
    index = open_index(folder)
    digest = hashlib.sha256()
    for row, owner in enumerate(index.images.product.tolist()):
        held = [index.products.id_of(owner), sorted(index.products.fields(owner).items())]
        digest.update(json.dumps(held).encode() + index.vectors[row].tobytes())
    return digest.hexdigest()


def in_child(work: Callable[[], str], *strace: str) -> tuple[int, str]:
    """Runs `work` in a forked process, under strace with these options where some are given.

    A fork, because importing everything again would take most of the time. Gives the exit
    status (0; 2: a ShoplensError; -9: killed) and what `work` returned or the error said.
    """
    go_read, go_write = os.pipe()
    out_read, out_write = os.pipe()
    child = os.fork()
    if not child:
        os.close(out_read)
        os.read(go_read, 1)  # until strace watches
        try:
            status, said = 0, work()
        except ShoplensError as error:
            status, said = 2, str(error)
        except BaseException as error:  # noqa: BLE001 (the parent tells)
            status, said = 1, repr(error)
        with suppress(OSError):  # where the fault comes so late
            os.write(out_write, said.encode()[:4000])
        os._exit(status)
    os.close(out_write)
    watcher = _watch(child, strace) if strace else None
    os.write(go_write, b"x")
    with os.fdopen(out_read, encoding="utf-8") as answers:
        said = answers.read()
    _, status = os.waitpid(child, 0)
    for descriptor in (go_read, go_write):
        os.close(descriptor)
    if watcher is not None:
        watcher.communicate()
    return os.waitstatus_to_exitcode(status), said


def _watch(child: int, options: Sequence[str]) -> subprocess.Popen[str]:
    watcher = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(child), *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    status = Path(f"/proc/{child}/status")
    while "TracerPid:\t0" in status.read_text(encoding="utf-8"):
        if watcher.poll() is not None:
            _, said = watcher.communicate()
            os.kill(child, 9)
            raise BenchmarkError(f"strace cannot watch a process here: {said.strip()}")
    return watcher


def count_calls(work: Callable[[], str], folder: Path) -> Counter[str]:
    """How often `work` makes each of CALLS. Raises BenchmarkError where it fails."""
    log = folder / "strace.log"
    trace = f"trace={','.join(CALLS)}"
    status, said = in_child(work, "-e", trace, "-o", str(log))
    if status:
        raise BenchmarkError(f"a command fails without any fault: {said}")
    found = re.findall(r"^\d+\s+(\w+)\(", log.read_text(encoding="utf-8"), re.MULTILINE)
    return Counter(found)


def inject(place: Path, job: str, every: int) -> Iterator[tuple[str, str, str]]:
    """Each fault at every `every`-th write and at all other calls: yields fault, call, outcome."""
    before, change = JOBS[job]
    start = place / "start"
    start.mkdir()
    make_shop(start)

    def prepared() -> str:
        for step in before:
            step(start)
        return state_of(start / "index")

    old = _must(in_child(prepared))
    shutil.copytree(start, place / "whole")
    new = _must(in_child(lambda: _done(change, place / "whole")))
    shutil.copytree(start, place / "counted")
    counts = count_calls(lambda: _done(change, place / "counted"), place)
    tried = place / "tried"
    for call in CALLS:
        for number in range(1, counts[call] + 1, every if call == "write" else 1):
            for fault, injection in FAULTS.items():
                shutil.copytree(start, tried)
                option = f"inject={call}:{injection}:when={number}"
                status, said = in_child(
                    lambda: _done(change, tried), "-e", f"trace={call}", "-e", option,
                    "-o", os.devnull,
                )  # fmt: skip
                yield fault, call, _outcome(status, said, change, tried, (old, new))
                shutil.rmtree(tried)


def _outcome(status: int, said: str, change: Job, place: Path, states: tuple[str, str]) -> str:
    old, new = states
    if status == 1:
        return f"BAD: not an error of ours: {said}"
    opened, state = in_child(lambda: state_of(place / "index"))
    if opened or state not in states:
        return f"BAD: opens to another state: {state}"
    again, after = in_child(lambda: _done(change, place))
    if state == old and (again or after != new):
        return f"BAD: the same command does not go on: {after}"
    return "old" if state == old else "new"


def _done(change: Job, place: Path) -> str:
    change(place)
    return state_of(place / "index")


def _must(ended: tuple[int, str]) -> str:
    status, said = ended
    if status:
        raise BenchmarkError(f"a command fails without any fault: {said}")
    return said


def flip(folder: Path, times: int, seed: int = 0) -> Iterator[tuple[str, int, int]]:
    """Flips bytes of each file of an index, and cuts it short, `times` each: yields its name,
    how many were refused, and how many there were."""
    rng = random.Random(seed)
    manifest = read_manifest(folder)
    files = [folder / MANIFEST]
    files += [folder / part.name / name for part in manifest.segments for name in part.files]
    for path in files:
        whole = path.read_bytes()
        refused = tried = 0
        for number in range(2 * times if whole else 0):
            place = rng.randrange(len(whole))
            flipped = whole[:place] + bytes([whole[place] ^ rng.randrange(1, 256)])
            path.write_bytes(whole[:place] if number % 2 else flipped + whole[place + 1 :])
            tried += 1
            try:
                open_index(folder)
            except IndexFolderError:
                refused += 1
        path.write_bytes(whole)
        yield str(path.relative_to(folder)), refused, tried


def two_segments(place: Path) -> Path:
    """An index of two segments; gives its folder."""
    make_shop(place)
    for step in (_index("old.csv"), _update):
        step(place)
    return place / "index"


def main(
    jobs: Annotated[str, typer.Option(help=f"Which of: {', '.join(JOBS)}.")] = ",".join(JOBS),
    every: Annotated[int, typer.Option(min=1, help="Try each so-manieth write.")] = 1,
    flips: Annotated[int, typer.Option(min=0, help="Flips and cuts of each file.")] = 0,
) -> None:
    """Break each command at every point, and say what was left."""
    console = Console()
    bad: list[str] = []
    if shutil.which("strace") is None:
        raise BenchmarkError("strace is not installed: `apt install strace`")
    import_faiss()  # each fork would do that anew
    table = Table("command", "fault", "points", "old version", "new version", "neither", box=None)
    for job in jobs.split(","):
        with tempfile.TemporaryDirectory() as place:
            outcomes: dict[str, Counter[str]] = {fault: Counter() for fault in FAULTS}
            for fault, call, outcome in inject(Path(place), job, every):
                outcomes[fault][outcome[:3]] += 1
                if outcome.startswith("BAD"):
                    bad.append(f"{job}, {fault} at {call}: {outcome}")
        for fault, seen in outcomes.items():
            cells = (seen.total(), seen["old"], seen["new"], seen["BAD"])
            table.add_row(job, fault, *(f"{cell:,}" for cell in cells))
    console.print(table)
    if flips:
        table = Table("file", "flipped or cut", "refused", box=None)
        with tempfile.TemporaryDirectory() as folder:
            for file, refused, tried in flip(two_segments(Path(folder)), flips):
                table.add_row(file, f"{tried:,}", f"{refused:,}")
                if refused < tried:
                    bad.append(f"{file}: {tried - refused} of {tried} not refused")
        console.print(table)
    for line in bad:
        console.print(line, markup=False, highlight=False)
    if bad:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
