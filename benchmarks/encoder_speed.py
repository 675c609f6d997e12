"""How much faster an encoder is in another runtime: `python -m benchmarks.encoder_speed`.

All of them run the same weights on the same inputs and take turns, on the threads that
OMP_NUM_THREADS says. What is compared with is open_clip's own loop: the model in eval and
inference mode, in the memory layout that it is loaded in, texts padded to the context length.
Weights do not change the time, so models can be measured that are not trained; what int8 loses
is what `shoplens optimize` measures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import describe_machine, installed_versions
from benchmarks.speed_stages import load_clip
from benchmarks.timing import Spread, speed_up, spread
from indexing.malloc import keep_freed_memory
from indexing.models.clip import ClipEncoder, create_model
from indexing.models.optimized.encoder import load_optimized
from indexing.models.optimized.exporting import export_towers
from indexing.models.optimized.making import Recipe, examples_of, make_model
from indexing.models.optimized.runtimes import RuntimeName
from indexing.models.protocol import Encoder
from indexing.models.torchvision_repair import import_torchvision
from indexing.processor import has_bfloat16

TITLES = (
    "Nike Men Air Zoom Pegasus Black Running Shoes",
    "Mother Earth Women Aug Bagru Red Kurta",
    "red ceramic mug 350 ml, pack of 2",
    "Fossil Women White Dial Chronograph Watch",
    "Kids cotton T-shirt with dinosaur print, size M",
    "Wildcraft Unisex Blue Laptop Backpack",
    "stainless steel water bottle 1 l BPA free",
    "Puma Men Striped Polo Navy",
)
_EXAMPLES = 4  # ranges do not change the time
_LIBRARIES = ("torch", "open_clip_torch", "openvino", "nncf", "onnxruntime")

Work = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """One way to run a tower beside open_clip's.

    Attributes:
        each: milliseconds a picture or text.
        faster: how many times faster, by rounds.
    """

    what: str
    way: str
    each: Spread
    faster: Spread


def compare_speed(
    encoder: ClipEncoder,
    batches: Sequence[int],
    runtimes: Sequence[RuntimeName],
    *,
    rounds: int,
    work: Path,
) -> list[Timed]:
    """Pictures at each batch size, and the titles at 8 and 1, by every way to run them.

    Raises MissingDependencyError where a runtime is not installed.
    """
    ways: dict[str, Encoder] = {"shoplens, torch": encoder, **_optimised(encoder, runtimes, work)}
    size = encoder.image_size
    pixels = torch.randn(max(batches), 3, size, size, generator=torch.Generator().manual_seed(0))
    plain = _Plain(encoder)
    found: list[Timed] = []
    for batch in batches:
        part = pixels[:batch]
        own = {name: _bound(way.embed_pixels, part.numpy()) for name, way in ways.items()}
        found += _timed(f"pictures, batch {batch}", batch, plain.pictures(part), own, rounds)
    for count in (len(TITLES), 1):
        titles = TITLES[:count]
        own = {name: _bound(way.embed_texts, titles) for name, way in ways.items()}
        found += _timed(f"titles, batch {count}", count, plain.texts(titles), own, rounds)
    return found


class _Plain:
    """open_clip as its README runs it."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self._model = create_model(encoder.config["model_cfg"])
        self._model.load_state_dict(encoder.model.state_dict())
        self._model.eval()
        self._tokenizer = encoder.tokenizer

    def pictures(self, pixels: Tensor) -> Work:
        return lambda: self._unit(self._model.encode_image, pixels)

    def texts(self, titles: Sequence[str]) -> Work:
        return lambda: self._unit(self._model.encode_text, self._tokenizer(titles))

    @staticmethod
    @torch.inference_mode()
    def _unit(encode: Callable[[Tensor], Tensor], given: Tensor) -> Any:
        return functional.normalize(encode(given), dim=-1).numpy()


def _optimised(
    encoder: ClipEncoder, runtimes: Sequence[RuntimeName], work: Path
) -> dict[str, Encoder]:
    exported = export_towers(encoder, work)
    size = encoder.image_size
    pixels = torch.randn(_EXAMPLES, 3, size, size, generator=torch.Generator().manual_seed(1))
    examples = examples_of(encoder, exported, list(pixels.numpy()), TITLES)
    recipes: dict[str, Recipe] = {}
    for runtime in runtimes:
        recipes[f"{runtime} fp32"] = Recipe(runtime, int8=False)
        recipes[f"{runtime} int8"] = Recipe(runtime, int8=True)
        if runtime == "openvino" and has_bfloat16():
            recipes[f"{runtime} bf16"] = Recipe(runtime, int8=False, floats="bfloat16")
            recipes[f"{runtime} int8, bf16"] = Recipe(runtime, int8=True, floats="bfloat16")
    found: dict[str, Encoder] = {}
    for number, (name, recipe) in enumerate(recipes.items()):
        folder = work / f"{number}"
        make_model(encoder, exported, recipe, examples, folder)
        found[name] = load_optimized(folder)
    return found


def _bound(embed: Callable[[Any], object], given: object) -> Work:
    return lambda: embed(given)


def _timed(what: str, count: int, plain: Work, ways: dict[str, Work], rounds: int) -> list[Timed]:
    """Every way once a round, after a round that does not count.

    On one thread it is the processor's time that counts, so that other processes do not.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    every = {"open_clip": plain, **ways}
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for number in range(rounds + 1):
        for name, run in every.items():
            started = clock()
            run()
            if number:
                seconds[name].append(clock() - started)
    return [
        Timed(
            what,
            name,
            spread([1000 * value / count for value in own]),
            speed_up(own, seconds["open_clip"]),
        )
        for name, own in seconds.items()
    ]


def untrained(architecture: str) -> ClipEncoder:
    """An open_clip model with weights at random and its own tokenizer."""
    import_torchvision()
    import open_clip

    torch.manual_seed(0)
    config = open_clip.get_model_config(architecture)
    model = create_model(config)
    eye = {"size": model.visual.image_size, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3}
    whole = {"model_cfg": config, "preprocess_cfg": eye, "tokenizer": architecture}
    return ClipEncoder(architecture, model, open_clip.get_tokenizer(architecture), whole)


def main(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, builtin, or open_clip architectures.")
    ],
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Of pictures.")] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="openvino or onnx; both by default.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Time encoders in every runtime beside open_clip.

    Example:

        OMP_NUM_THREADS=1 python -m benchmarks.encoder_speed builtin ViT-B-32 --batch 16
    """
    keep_freed_memory()  # as commands do; it makes torch itself faster, here on both sides
    typer.echo(f"{describe_machine()}; {torch.get_num_threads()} threads; medians of {rounds}")
    typer.echo(", ".join(f"{n} {v}" for n, v in installed_versions(_LIBRARIES).items()))
    for name in models:
        known = name == "builtin" or Path(name).is_dir()
        encoder = load_clip(name) if known else untrained(name)
        chosen = cast("list[RuntimeName]", runtime or ["openvino", "onnx"])
        with tempfile.TemporaryDirectory() as work:
            found = compare_speed(encoder, batch or [16], chosen, rounds=rounds, work=Path(work))
        typer.echo(f"\n{name}\n")
        typer.echo("| what | way | ms each | times faster |")
        typer.echo("|---|---|---|---|")
        for one in found:
            ratio = f"{one.faster.median:.2f} ({one.faster.low:.2f}-{one.faster.high:.2f})"
            typer.echo(f"| {one.what} | {one.way} | {one.each.median:.2f} | {ratio} |")


if __name__ == "__main__":
    typer.run(main)
