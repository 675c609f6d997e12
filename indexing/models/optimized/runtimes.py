"""What can run a graph: one file a runtime, and what each of them must give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from indexing.errors import MissingDependencyError, ModelError
from indexing.processor import has_bfloat16

RuntimeName = Literal["openvino", "onnx"]
PIXELS, IDS, ENDS = "pixels", "ids", "ends"  # what graphs take, see exporting.py

Precision = Literal["fp32", "bf16", "int8"]
# Of what stays out of int8: as the parent has it, or bfloat16 on processors that have it.
Floats = Literal["float32", "bfloat16"]
Feeds = Mapping[str, NDArray[Any]]  # the inputs of a graph by name
Run = Callable[[Feeds], NDArray[np.float32]]  # to [n, dim]; any number of threads may call it


class Streams(NamedTuple):
    """What runs a graph, and by how many threads it wants to be called at a time."""

    run: Run
    at_once: int


class Runtime(Protocol):
    """A module that makes graphs of ONNX graphs and runs them."""

    SUFFIX: str  # of a graph's file

    def convert(self, source: Path, target: Path) -> None:
        """Writes the graph of an ONNX file in float32."""

    def quantise(
        self, source: Path, target: Path, examples: Sequence[Feeds], kept: Sequence[str]
    ) -> None:
        """Writes the graph of an ONNX file in int8.

        Args:
            examples: what ranges are taken from.
            kept: names of nodes that stay in floats.
        """

    def load(self, path: Path, floats: Floats, threads: int) -> Run:
        """Makes ready to run a graph, each batch by all threads. Raises RuntimeError where it
        cannot be run."""

    def load_streams(self, path: Path, floats: Floats, threads: int) -> Streams:
        """Makes ready to run a graph for several batches at a time, which is faster for many.
        Raises RuntimeError where it cannot be run."""

    def versions(self) -> dict[str, str]:
        """Of the libraries that make and run its graphs."""


def runtime(name: RuntimeName) -> Runtime:
    """The module of a runtime.

    Raises:
        MissingDependencyError: A library that it needs is not installed.
    """
    try:
        return cast("Runtime", import_module(f"indexing.models.optimized.{name}_runtime"))
    except ModuleNotFoundError as error:
        raise missing(name, error) from error


def check_installed(name: RuntimeName) -> None:
    """Raises MissingDependencyError where a library that models are made with is not there."""
    runtime(name)
    for library in ("onnx", "onnxscript", *(("nncf",) if name == "openvino" else ())):
        if find_spec(library) is None:
            raise missing(name, ModuleNotFoundError(name=library))


def check_precision(name: RuntimeName, precision: Precision) -> None:
    """Raises ModelError where a model of this precision could not be measured here."""
    if precision != "bf16":
        return
    if name != "openvino":
        raise ModelError(f"--precision bf16 needs --runtime openvino, not {name}")
    if not has_bfloat16():
        raise ModelError("--precision bf16: this processor has no bfloat16; give fp32 or int8")


def missing(name: RuntimeName, error: ModuleNotFoundError) -> MissingDependencyError:
    """What to say where a library of a runtime is not installed."""
    return MissingDependencyError(
        f"models optimised for {name} need {error.name}: pip install 'shoplens[{name}]'"
    )
