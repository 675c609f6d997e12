"""The demo: the main job on a catalog that needs no download, and a picture of its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from indexing.build import BuildReport, build_index
from indexing.catalog import read_catalog
from indexing.demo import write_demo_catalog
from indexing.embed import Progress
from indexing.images import read_image
from indexing.models import load_encoder
from indexing.sheet import stack_sheets
from search.answers import answer_sheet
from search.engine import SearchEngine
from search.hits import Hit

PHOTOS = 2
TEXTS = ("green shoe", "yellow mug", "yellow dress")


@dataclass(frozen=True)
class DemoAnswer:
    """A query of the demo and what came back."""

    query: str
    hits: list[Hit]


@dataclass(frozen=True)
class Demo:
    """What the demo made: files to look at and answers to print."""

    catalog: Path
    index: Path
    sheet: Path
    report: BuildReport
    answers: list[DemoAnswer]


def run_demo(out: Path, *, products: int = 240, progress: Progress | None = None) -> Demo:
    """Draws a catalog, indexes it with the builtin encoder, and asks by photo and by words.

    Everything is written below `out`, and a second run only does what is left to do.
    """
    catalog = write_demo_catalog(out / "catalog", products)
    index = out / "index"
    encoder = load_encoder("builtin")
    report = build_index(read_catalog(catalog), encoder, index, progress=progress)
    engine = SearchEngine.open(index)
    answers: list[DemoAnswer] = []
    sheets: list[Image.Image] = []
    for photo in sorted((catalog.parent / "queries").iterdir())[:PHOTOS]:
        hits = engine.search(image=photo, k=5)
        answers.append(DemoAnswer(f"photo {photo.name}", hits))
        sheets.append(answer_sheet(read_image(photo), photo.name, hits))
    for text in TEXTS:
        hits = engine.search(text=text, k=5)
        answers.append(DemoAnswer(f"text {text!r}", hits))
        sheets.append(answer_sheet(None, text, hits))
    sheet = out / "answers.png"
    stack_sheets(sheets).save(sheet)
    return Demo(catalog, index, sheet, report, answers)
