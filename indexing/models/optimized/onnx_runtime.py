"""onnxruntime: graphs quantised by its own tool, and run on the processor."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from indexing.models.optimized.runtimes import Feeds, Floats, Run, Streams

SUFFIX = ".onnx"
_QUANTISED = ["Conv", "MatMul", "Gemm"]


def convert(source: Path, target: Path) -> None:
    """As of `Runtime`."""
    import onnx

    onnx.save(onnx.load(source), target)


def quantise(source: Path, target: Path, examples: Sequence[Feeds], kept: Sequence[str]) -> None:
    """As of `Runtime`: weights by channel, ranges of activations from the examples.

    Ranges that are taken anew from each batch would make a vector hang on what is beside it.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Examples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(examples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            found = next(self._left, None)
            return None if found is None else dict(found)

    with TemporaryDirectory() as temporary, _quiet():
        prepared = Path(temporary) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Examples(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=list(kept),
        )


def load(path: Path, floats: Floats, threads: int) -> Run:
    """As of `Runtime`. What stays out of int8 is float32 here, whatever `floats` says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, of which none is public
        raise RuntimeError(str(error)) from error

    def run(feeds: Feeds) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, dict(feeds))[0]
        return found

    return run


def load_streams(path: Path, floats: Floats, threads: int) -> Streams:
    """As of `Runtime`: each batch by one thread."""
    return Streams(load(path, floats, 1), threads)


def versions() -> dict[str, str]:
    """As of `Runtime`."""
    return {name: version(name) for name in ("onnx", "onnxruntime")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without advice that does not hold here."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
