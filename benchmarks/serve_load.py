"""What `shoplens serve` does under load, with and without micro-batching.

    python -m benchmarks.serve_load --clients 32 --seconds 60

A server is started on a drawn shop, or on an index of your own, and as many clients ask as fast as
they get answers: pictures, texts, and now and then both. Meanwhile the index may be changed
(`--reload`). Clients and server share the machine.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from indexing.errors import BenchmarkError
from indexing.images import decode_image
from indexing.malloc import keep_freed_memory
from indexing.models import load_encoder
from indexing.store import open_index
from search.demo import run_demo
from search.server.schemas import SearchAnswer

TEXTS = ("red mug", "green shoe", "yellow dress", "blue bag with stripes", "white lamp")
_PATH = "/v1/indexes/shop/search"


@dataclass
class Seen:
    """What the clients saw: seconds of each good answer, milliseconds in the model, statuses."""

    seconds: list[float] = field(default_factory=list)
    model: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)


@contextmanager
def server(index: Path, work: Path, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A running server; gives its address and the id of its process."""
    command = [sys.executable, "-m", "shoplens", "serve", f"shop={index}", "--port", "0", *options]
    command += ["--thumbnails", str(work / "thumbnails")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if process.stderr is None:
        raise BenchmarkError("the server has no log")
    try:
        for line in process.stderr:
            if '"serving at ' in line:
                url = json.loads(line)["message"].removeprefix("serving at ")
                break
        else:
            raise BenchmarkError(f"the server does not start: {' '.join(command)}")
        log = process.stderr
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


async def load(url: str, pictures: Sequence[bytes], clients: int, seconds: float) -> Seen:
    """Asks from so many clients for so long; the first answers of each do not count."""
    seen = Seen()
    until = time.monotonic() + seconds

    async def client(number: int, http: httpx.AsyncClient) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            photo = rng.random() < 0.6
            text = rng.choice(TEXTS) if not photo or rng.random() < 0.2 else None
            form = {"k": "24"} | ({} if text is None else {"text": text})
            files = {"image": rng.choice(pictures)} if photo else None
            start = time.perf_counter()
            try:
                answer = await http.post(_PATH, data=form, files=files)
            except httpx.HTTPError as error:
                seen.statuses[type(error).__name__] += 1
                continue
            took = time.perf_counter() - start
            seen.statuses[str(answer.status_code)] += 1
            if answer.status_code == httpx.codes.OK:
                found = SearchAnswer.model_validate_json(answer.content)
                seen.seconds.append(took)
                seen.model.append(found.took_ms.model)
                seen.versions[found.version] += 1
            elif answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                await asyncio.sleep(float(answer.headers["retry-after"]))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
        for picture in pictures[:3]:  # warms up
            await http.post(_PATH, files={"image": picture})
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(number, http) for number in range(clients)))
    return seen


def model_alone(index: Path, pictures: Sequence[bytes], batch: int) -> float:
    """Milliseconds a picture that the bare encoder takes, with so many together."""
    keep_freed_memory()  # as the server does
    encoder = load_encoder(open_index(index).manifest.encoder.name)
    shown = [encoder.preprocess(decode_image(pictures[i % len(pictures)])) for i in range(batch)]
    pixels = np.stack(shown)
    times = []
    encoder.embed_pixels(pixels)  # the first one reserves memory
    for _ in range(10):
        start = time.perf_counter()
        encoder.embed_pixels(pixels)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) / batch * 1000


def peak_memory(pid: int) -> int:
    """The most memory, in MB, that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1000
    return 0


def keep_changing(index: Path, stop: threading.Event, pause: float) -> None:
    """Deletes a product of an index from time to time, and brings it back."""
    ids = open_index(index).products.ids
    version = open_index(index).manifest.version
    delete = [sys.executable, "-m", "shoplens", "delete", str(index), ids[-1]]
    back = [sys.executable, "-m", "shoplens", "rollback", str(index), "--to", str(version)]
    while not stop.wait(pause):
        for command in (delete, back):
            subprocess.run(command, check=True, capture_output=True)


def main(
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An index of your own.", show_default="drawn")
    ] = None,
    photos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures to ask with.", show_default="drawn")
    ] = None,
    clients: Annotated[int, typer.Option(min=1)] = 32,
    seconds: Annotated[float, typer.Option(min=1)] = 60.0,
    reload: Annotated[bool, typer.Option("--reload", help="Change the index meanwhile.")] = False,
) -> None:
    """Load a server, with and without micro-batching."""
    console = Console()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        if index is None:
            index = run_demo(work / "demo").index
            photos = photos or work / "demo" / "catalog" / "queries"
        if photos is None:
            raise BenchmarkError("with --index, give pictures to ask with: --photos DIR")
        pictures = [path.read_bytes() for path in sorted(photos.iterdir())[:64] if path.is_file()]
        for batch in (1, 16):
            cost = model_alone(index, pictures, batch)
            console.print(f"the model alone: {cost:.1f} ms a picture, {batch} together")
        table = Table(box=None)
        for name in ("", "requests/s", "p50 ms", "p99 ms", "model p50", "peak MB", "answers"):
            table.add_column(name, justify="right" if name else "left")
        for name, options in (("batched", []), ("one by one", ["--max-batch", "1"])):
            stop = threading.Event()
            with server(index, work, options) as (url, pid):
                changer = threading.Thread(target=keep_changing, args=(index, stop, 2.0))
                if reload:
                    changer.start()
                start = time.monotonic()
                seen = asyncio.run(load(url, pictures, clients, seconds))
                took = time.monotonic() - start
                stop.set()
                if reload:
                    changer.join()
                memory = peak_memory(pid)
            p50, p99 = np.percentile(np.array(seen.seconds or [np.nan]) * 1000, [50, 99])
            model = np.median(seen.model or [np.nan])
            said = ", ".join(f"{status}: {count:,}" for status, count in seen.statuses.items())
            if reload:
                said += f" by {len(seen.versions)} versions"
            rate = len(seen.seconds) / took
            cells = (f"{rate:.1f}", f"{p50:.0f}", f"{p99:.0f}", f"{model:.0f}", str(memory), said)
            table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
