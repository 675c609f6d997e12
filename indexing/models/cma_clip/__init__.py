"""CMA-CLIP (Liu et al., arXiv 2112.03562): attributes of a product from its picture and title."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexing.models.cma_clip.classifier import CmaClassifier


def load_attributes(folder: str | Path, *, device: str | None = None) -> CmaClassifier:
    """Opens the folder that `shoplens train attributes` wrote.

    Args:
        device: a torch device; the GPU where there is one, else the CPU.

    Raises:
        ModelError: It is no such folder, or a file is missing or does not fit the others.
    """
    from indexing.models import usable_device
    from indexing.models.cma_clip.classifier import open_folder

    return open_folder(Path(folder), device=usable_device(device))
