"""From a catalog to an index by whole commands: shoplens, and what people use instead.

Each command starts as a user starts it, so interpreter, imports and the loading of the model count.
All have the same pictures and an architecture of the same sizes; they take turns, after a round
that is not counted. How many pictures an index holds in the end is looked up in it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import benchmarks.speed_loops.sentence_transformers_loop as sentence_transformers_loop
from benchmarks.machine import describe_machine, installed_versions
from benchmarks.speed import PACKAGES
from benchmarks.speed_shop import Shop
from benchmarks.timing import Spread, speed_up, spread
from indexing.durable import replace_bytes
from indexing.errors import BenchmarkError
from indexing.faiss_import import import_faiss
from indexing.models.config_file import CONFIG, WEIGHTS
from indexing.models.tokenizers import TOKENIZER
from indexing.store import open_index

Note = Callable[[str], None]
Arguments = list[str]

# Nothing may be fetched while the clock runs; weights come from files.
_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_LAST_WORDS = 300  # characters of what a failed command says


@dataclass(frozen=True)
class Peers:
    """What may stand beside shoplens, each where it is installed.

    Attributes:
        optimized: a folder that `shoplens optimize` wrote of the same model.
        sentence_transformers: the Python of an environment with it and FAISS.
        clip_retrieval: likewise.
    """

    optimized: Path | None = None
    sentence_transformers: Path | None = None
    clip_retrieval: Path | None = None


@dataclass(frozen=True)
class System:
    """One way to an index.

    Attributes:
        steps: commands, run one after the other, that index into an empty folder.
        count: pictures in the index there.
    """

    name: str
    steps: Callable[[Path], list[Arguments]]
    count: Callable[[Path], int]


@dataclass(frozen=True)
class Indexed:
    """A system's rounds: seconds on the clock and of processors."""

    system: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def times_slower(self, than: Indexed) -> Spread:
        """By rounds."""
        return speed_up(than.seconds, self.seconds)

    def cpu_times_slower(self, than: Indexed) -> Spread:
        """By rounds, in processors' time."""
        return speed_up(than.cpu_seconds, self.cpu_seconds)


def measure_commands(
    shop: Shop, model: str, peers: Peers, work: Path, *, rounds: int, note: Note
) -> list[Indexed]:
    """Time all of them; shoplens comes first.

    Raises BenchmarkError where the model is none of open_clip's architectures, where a command
    fails, or where an index does not hold every picture.
    """
    systems = _systems(shop, model, peers, work)
    found = {system.name: Indexed(system.name) for system in systems}
    for number in range(rounds + 1):
        for system in systems:
            folder = work / "index"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            took = [_run(step) for step in system.steps(folder)]
            seconds, cpu = (sum(part) for part in zip(*took, strict=True))
            if (count := system.count(folder)) != len(shop.rows):
                raise BenchmarkError(f"{system.name}: {count} of {len(shop.rows)} are indexed")
            note(f"{system.name}: {seconds:.1f} s, {cpu:.1f} CPU s")
            if number:
                found[system.name].seconds.append(seconds)
                found[system.name].cpu_seconds.append(cpu)
    return [*found.values()]


COLUMNS = ("system", "seconds", "CPU seconds", "times as long", "times the CPU")


def command_cells(own: Indexed, first: Indexed) -> list[str]:
    """A row of the table, in COLUMNS: beside the first of the systems."""
    times = (spread(own.seconds), spread(own.cpu_seconds))
    ratios = (own.times_slower(first), own.cpu_times_slower(first))
    return [
        own.system,
        *(f"{time.median:.1f} [{time.low:.1f}–{time.high:.1f}]" for time in times),
        *(f"{ratio.median:.2f}× [{ratio.low:.2f}–{ratio.high:.2f}]" for ratio in ratios),
    ]


def write_commands(systems: list[Indexed], pictures: int, command: str, folder: Path) -> None:
    """Writes commands.json (every round) and commands.md. Raises OSError."""
    versions = installed_versions(PACKAGES)
    content = {
        "command": command,
        "pictures": pictures,
        "machine": describe_machine(),
        "versions": versions,
        "systems": [asdict(one) for one in systems],
    }
    first = systems[0]
    page = [
        "# From a catalog to an index, by whole commands",
        "",
        f"`{command}`",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * (len(COLUMNS) - 1)}",
        *(f"| {' | '.join(command_cells(one, first))} |" for one in systems),
        "",
        f"{pictures:,} pictures; medians of {len(first.seconds)} rounds [smallest–largest]; the "
        f"systems take turns, and times as long is beside {first.system} in the same round.",
        f"On {describe_machine()}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ".",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    replace_bytes(folder / "commands.json", (json.dumps(content, indent=1) + "\n").encode())
    replace_bytes(folder / "commands.md", ("\n".join(page) + "\n").encode())


def _systems(shop: Shop, model: str, peers: Peers, work: Path) -> list[System]:
    architecture, weights = _architecture(model)
    catalog = str(shop.catalog.resolve())
    chosen = model if peers.optimized is None else str(peers.optimized.resolve())
    systems = [
        # What the others do, and with the calibration that they have not.
        _ours("shoplens --no-match", catalog, chosen, "--no-match"),
        _ours("shoplens", catalog, chosen),
    ]
    loop = [sys.executable, "-m", "benchmarks.speed_loops.open_clip_loop"]
    systems.append(
        System(
            "open_clip loop",
            lambda out: [[*loop, catalog, architecture, weights, str(out / "faiss")]],
            lambda out: _faiss_count(out / "faiss"),
        )
    )
    if peers.sentence_transformers is not None:
        script = [str(peers.sentence_transformers), sentence_transformers_loop.__file__]
        sizes, folder = work / "sizes.json", work / "sentence-transformers"
        sizes.write_text(json.dumps(_sizes(architecture)))
        _run([*script, "make", str(sizes), str(folder)])
        systems.append(
            System(
                "sentence-transformers",
                lambda out: [[*script, "index", catalog, str(folder), str(out / "faiss")]],
                lambda out: _faiss_count(out / "faiss"),
            )
        )
    if peers.clip_retrieval is not None:
        command = str(peers.clip_retrieval.parent / "clip-retrieval")
        images = str(shop.pictures[0].parent.resolve())
        systems.append(
            System(
                "clip-retrieval",
                lambda out: [
                    [command, "inference", "--input_dataset", images, "--output_folder",
                     f"{out}/vectors", "--clip_model", f"open_clip:{architecture}/{weights}",
                     "--enable_text", "False"],
                    [command, "index", "--embeddings_folder", f"{out}/vectors",
                     "--index_folder", f"{out}/index"],
                ],
                lambda out: _faiss_count(out / "index" / "image.index"),
            )
        )  # fmt: skip
    return systems


def _ours(name: str, catalog: str, model: str, *more: str) -> System:
    command = [sys.executable, "-m", "shoplens", "index", catalog, "--model", model, *more]
    return System(
        name,
        lambda out: [[*command, "--out", str(out / "shop")]],
        lambda out: open_index(out / "shop").manifest.images,
    )


def _faiss_count(path: Path) -> int:
    return int(import_faiss().read_index(str(path)).ntotal)


def _architecture(model: str) -> tuple[str, str]:
    """What open_clip calls the model, and its weights."""
    folder = Path(model)
    if not (folder / CONFIG).is_file():
        architecture, _, weights = model.partition("/")
        if weights and not model.startswith("hf-hub:"):
            return architecture, weights
    elif not (folder / TOKENIZER).is_file():
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config["tokenizer"], str((folder / WEIGHTS).resolve())
    raise BenchmarkError(
        f"model {model!r} is none of open_clip's architectures, so no other system can index with "
        "it: give ARCH/PRETRAINED, or leave --optimized, --sentence-transformers and "
        "--clip-retrieval out"
    )


def _sizes(architecture: str) -> dict[str, Any]:
    """The sizes of one of open_clip's CLIP models, as transformers calls them."""
    from indexing.models.torchvision_repair import import_torchvision

    import_torchvision()
    import open_clip

    config = open_clip.get_model_config(architecture)
    eye, text = config["vision_cfg"], config["text_cfg"]
    if not isinstance(eye.get("layers"), int) or "hf_model_name" in text:
        raise BenchmarkError(f"{architecture} is no ViT of CLIP: leave --sentence-transformers out")
    width = eye["width"]
    return {
        "projection_dim": config["embed_dim"],
        "vision_config": {
            "image_size": eye["image_size"],
            "patch_size": eye["patch_size"],
            "hidden_size": width,
            "num_hidden_layers": eye["layers"],
            "num_attention_heads": width // eye.get("head_width", 64),
            "intermediate_size": round(width * eye.get("mlp_ratio", 4.0)),
        },
        "text_config": {
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": 4 * text["width"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
        },
    }


def _run(command: Arguments) -> tuple[float, float]:
    """Seconds on the clock and CPU seconds of a command and its children.

    Raises BenchmarkError where it cannot be started or fails.
    """
    started = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            env={**os.environ, **_OFFLINE},
        )  # fmt: skip
    except OSError as error:
        raise BenchmarkError(f"{command[0]} cannot be started: {error}") from error
    said = process.stdout.read() if process.stdout is not None else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        last = " ".join(said.split())[-_LAST_WORDS:]
        raise BenchmarkError(f"{' '.join(command[:4])} … failed: {last}")
    return time.perf_counter() - started, used.ru_utime + used.ru_stime
