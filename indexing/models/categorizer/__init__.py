"""Categories of products from their titles alone (Chen & Chou, Rakuten)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexing.models.categorizer.categorizer import Categorizer


def load_categorizer(folder: str | Path, device: str | None = None) -> Categorizer:
    """Opens the folder that `shoplens train categories` wrote.

    Args:
        device: a torch device; the GPU where there is one, else the CPU.

    Raises:
        ModelError: It is no such folder, or a file is missing, damaged or does not fit the
            others.
        MissingDependencyError: transformers is not installed.
    """
    from indexing.models import usable_device
    from indexing.models.categorizer.categorizer import open_folder

    return open_folder(Path(folder), device=usable_device(device))
