"""Made-up ESCI files, drawn once or described by facts only, and a short way to split them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.esci.build import build_split
from benchmarks.esci.generator import (
    EXAMPLES,
    FACTS,
    IMAGES,
    MANIFEST,
    PLACEHOLDERS,
    PRODUCTS,
    generate,
)
from benchmarks.esci.manifest import Options, Split
from benchmarks.esci.sources import parse_source

MAX_SHARED = 2  # two products share a picture on purpose, three or more a placeholder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 products with real picture files: each planted case three times."""
    folder = tmp_path_factory.mktemp("drawn") / "esci"
    generate(folder, 72, seed=1, pictures="drawn")
    return folder


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 products whose pictures are known by scan.parquet alone."""
    folder = tmp_path_factory.mktemp("described") / "esci"
    generate(folder, 1200, seed=1, pictures="facts")
    return folder


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., Split]:
    """split(folder of generated files, out, **options): with the facts where they are there."""

    def build(folder: Path, out: str = "out", **changes: Any) -> Split:
        given = {name: changes.pop(name) for name in ("progress", "stage") if name in changes}
        sources = changes.pop("sources", [str(folder / MANIFEST)])
        facts = changes.pop("facts", folder / FACTS if (folder / FACTS).exists() else None)
        return build_split(
            folder / EXAMPLES,
            folder / PRODUCTS,
            [parse_source(source) for source in sources],
            changes.pop("images_root", folder / IMAGES),
            tmp_path / out,
            Options(**{"max_shared": MAX_SHARED, **changes}),
            facts=facts,
            placeholders=folder / PLACEHOLDERS,
            **given,
        )

    return build
