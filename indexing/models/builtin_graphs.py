"""`builtin` without torch, for commands that answer one question and end.

Its folder has the graphs of both towers for onnxruntime, picture.onnx and text.onnx, without
weights: these are looked up in its model.safetensors, as half floats, by their places in that
file. `python -m indexing.models.builtin_graphs` writes the graphs anew, which every change of
the weights needs.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from indexing.models import BUILTIN
from indexing.models.clip_eye import ClipEye
from indexing.models.config_file import CONFIG, PROBE, WEIGHTS, fingerprint
from indexing.models.optimized.encoder import GraphEncoder, Graphs
from indexing.models.optimized.runtimes import runtime
from indexing.models.tokenizers import TOKENIZER, FolderTokenizer

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

SIDES = ("picture", "text")
_MODULE = "model."  # stands before the names of parameters in the graphs


def load_builtin_graphs(folder: Path = BUILTIN) -> GraphEncoder:
    """`builtin`, on the CPU. It is the same encoder as torch runs, with the same fingerprint.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tokenizer = FolderTokenizer(
        folder / TOKENIZER, int(config["model_cfg"]["text_cfg"]["context_length"])
    )
    return GraphEncoder(
        "builtin",
        _fingerprint(folder, config, tokenizer),
        int(config["model_cfg"]["embed_dim"]),
        "argmax",  # the end token of a folder's tokenizer has the highest id
        ClipEye(config["preprocess_cfg"]),
        lambda: tokenizer,
        Graphs(folder, runtime("onnx"), "float32"),
    )


def write_graphs(folder: Path) -> None:
    """Writes the graphs of a model folder like `builtin`'s into it.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
    """
    from indexing.models.clip import load_folder
    from indexing.models.optimized.exporting import export_towers

    places = _places(folder / WEIGHTS)
    with TemporaryDirectory() as work:
        exported = export_towers(load_folder(folder), Path(work), folded=False)
        import onnx  # after what says that it is missing

        for path in (exported.picture, exported.text):
            graph = onnx.load(path)
            _look_weights_up(graph, places)
            onnx.save(graph, folder / path.name)


def _look_weights_up(model: ModelProto, places: dict[str, dict[str, Any]]) -> None:
    """Replaces the weights of a graph by where they are in WEIGHTS."""
    from onnx import TensorProto, helper

    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        place = places.get(tensor.name.removeprefix(_MODULE))
        if place is None:
            continue  # the mask of what comes later is no parameter
        stored = TensorProto(
            name=f"{tensor.name}.half", data_type=TensorProto.FLOAT16, dims=place["shape"]
        )
        _point(stored, WEIGHTS, place["offset"], place["length"])
        graph.initializer.remove(tensor)
        graph.initializer.append(stored)
        casts.append(helper.make_node("Cast", [stored.name], [tensor.name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        graph.node.insert(0, node)
    del graph.value_info[:]
    for node in graph.node:
        del node.metadata_props[:]  # the lines of Python that it comes from


def _point(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    from onnx import TensorProto

    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _places(weights: Path) -> dict[str, dict[str, Any]]:
    """Shape, offset and length in bytes of each tensor in a file of safetensors, by name.

    The file begins with the length of its header, eight bytes, and the header, which is JSON;
    offsets in it count from its end (https://huggingface.co/docs/safetensors).
    """
    with weights.open("rb") as file:
        begin = 8 + (size := int.from_bytes(file.read(8), "little"))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: {
            "shape": entry["shape"],
            "offset": begin + entry["data_offsets"][0],
            "length": entry["data_offsets"][1] - entry["data_offsets"][0],
        }
        for name, entry in header.items()
    }


def _fingerprint(folder: Path, config: dict[str, Any], tokenizer: FolderTokenizer) -> str:
    """That of the same folder in torch, which computes in float32."""
    from safetensors.numpy import load_file

    arrays = {
        name: value.astype(np.float32) if value.dtype == np.float16 else value
        for name, value in load_file(folder / WEIGHTS).items()
    }
    return fingerprint(config, folder / TOKENIZER, tokenizer.ids([PROBE]), arrays)


if __name__ == "__main__":
    write_graphs(BUILTIN)
