"""open_clip and FAISS, as their READMEs say: a catalog's pictures to an index.

`python -m benchmarks.speed_loops.open_clip_loop CATALOG ARCHITECTURE WEIGHTS INDEX`
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from indexing.models.torchvision_repair import import_torchvision

BATCH = 32


def index(catalog: str, architecture: str, weights: str, out: str) -> None:
    import_torchvision()
    import faiss
    import open_clip
    import torch
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights)
    model.eval()
    with Path(catalog).open(encoding="utf-8", newline="") as file:
        paths = [Path(catalog).parent / row["image"] for row in csv.DictReader(file)]
    found = faiss.IndexFlatIP(model.visual.output_dim)
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        pixels = torch.stack([preprocess(Image.open(path)) for path in batch])
        with torch.inference_mode():
            features = model.encode_image(pixels)
            features /= features.norm(dim=-1, keepdim=True)
        found.add(features.numpy())
    faiss.write_index(found, out)


if __name__ == "__main__":
    index(*sys.argv[1:])
