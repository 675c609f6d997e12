"""sentence-transformers and FAISS, as their READMEs say: a catalog's pictures to an index.

Runs in an environment of its own, which has no shoplens: `python THIS make SIZES FOLDER` writes
a CLIP model of the sizes in a JSON file, with weights at random, which take as long as any;
`python THIS index CATALOG FOLDER INDEX` indexes with it.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

BATCH = 32  # their default


def make(sizes: str, folder: str) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    given = json.loads(Path(sizes).read_text())
    CLIPModel(CLIPConfig(**given)).save_pretrained(folder)
    side = given["vision_config"]["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)


def index(catalog: str, folder: str, out: str) -> None:
    import faiss
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder)
    with Path(catalog).open(encoding="utf-8", newline="") as file:
        paths = [Path(catalog).parent / row["image"] for row in csv.DictReader(file)]
    vectors = model.encode(
        [Image.open(path) for path in paths], batch_size=BATCH, normalize_embeddings=True
    )
    found = faiss.IndexFlatIP(vectors.shape[1])
    found.add(vectors)
    faiss.write_index(found, out)


if __name__ == "__main__":
    (make if sys.argv[1] == "make" else index)(*sys.argv[2:])
