"""The house in order: names that are ours alone, a door that opens fast, notes that agree."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import distributions, packages_distributions, version
from pathlib import Path

import pytest

import shoplens

ROOT = Path(__file__).parents[1]
OURS = ("shoplens", "indexing", "search", "training", "benchmarks")


@pytest.mark.parametrize("name", OURS)
def test_no_other_distribution_claims_our_folders(name: str) -> None:
    claims = set(packages_distributions().get(name, []))
    for distribution in distributions():
        if any(
            str(file).startswith((f"{name}/", f"{name}.py")) for file in distribution.files or []
        ):
            claims.add(distribution.metadata["Name"])
    assert claims <= {"shoplens"}, f"{name}/ would be overwritten by {claims - {'shoplens'}}"


@pytest.mark.parametrize("name", OURS)
def test_our_folders_are_what_python_imports(name: str) -> None:
    module = sys.modules.get(name) or __import__(name)
    assert Path(str(module.__file__)).is_relative_to(ROOT)


def test_the_door_imports_nothing_heavy() -> None:
    code = (
        "import sys, shoplens\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'faiss', 'open_clip', 'PIL', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", shoplens.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(shoplens, name) is not None


def test_the_changelog_knows_this_version() -> None:
    first = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first.group(1) == version("shoplens")
