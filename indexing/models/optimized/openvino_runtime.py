"""OpenVINO: graphs quantised by nncf, and run on the processor."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexing.models.optimized.runtimes import Feeds, Floats, Run, Streams

# Both libraries report their use to Intel unless this one cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

SUFFIX = ".xml"
_NOT_IGNORED = {"Convolution", "GroupConvolution", "MatMul", "Constant", "Parameter", "Result"}
_PRODUCT = "/WithoutBiases"  # what it calls a layer of ONNX before its bias is added
_PRECISION = {"float32": "f32", "bfloat16": "bf16"}


def convert(source: Path, target: Path) -> None:
    """As of `Runtime`."""
    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)


def quantise(source: Path, target: Path, examples: Sequence[Feeds], kept: Sequence[str]) -> None:
    """As of `Runtime`, by nncf's post-training quantisation.

    Convolutions and products of matrices are computed in int8 and nothing else: sums with the
    infinities of a mask have no range. Of transformers it moves outliers into the weights.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(source)
    transformer = any(node.get_type_name() == "SoftMax" for node in model.get_ops())
    names = [node.get_friendly_name() for node in model.get_ops()]
    types = {node.get_type_name() for node in model.get_ops()} - _NOT_IGNORED
    with _silent():
        quantised = nncf.quantize(
            model,
            nncf.Dataset(list(examples)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(examples),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            ignored_scope=nncf.IgnoredScope(
                names=[name for name in names if name.removesuffix(_PRODUCT) in kept],
                types=sorted(types),
            ),
        )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def load(path: Path, floats: Floats, threads: int) -> Run:
    """As of `Runtime`."""
    return _run(_compiled(path, floats, threads, "LATENCY"))


def load_streams(path: Path, floats: Floats, threads: int) -> Streams:
    """As of `Runtime`. How many streams a processor carries is OpenVINO's choice."""
    compiled = _compiled(path, floats, threads, "THROUGHPUT")
    return Streams(_run(compiled), compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))


def _compiled(path: Path, floats: Floats, threads: int, hint: str) -> openvino.CompiledModel:
    core = openvino.Core()
    return core.compile_model(
        core.read_model(path),
        "CPU",
        {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": _PRECISION[floats],
            "INFERENCE_NUM_THREADS": threads,
        },
    )


def _run(compiled: openvino.CompiledModel) -> Run:
    own = local()  # a request belongs to one thread at a time

    def run(feeds: Feeds) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found: Any = own.request.infer(dict(feeds), share_inputs=True)[0]
        return np.array(found, np.float32)

    return run


def versions() -> dict[str, str]:
    """As of `Runtime`."""
    return {name: version(name) for name in ("openvino", "nncf")}


@contextmanager
def _silent() -> Iterator[None]:
    """Without nncf's own progress bars."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
