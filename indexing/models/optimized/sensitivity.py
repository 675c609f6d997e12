"""Which layers of a graph lose most in int8.

Every input of a layer that int8 would round gets a switch: rounded to 256 steps between its
least and its largest value, or as it is. So one graph measures the layers one by one, by what
each alone does to the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexing.models.optimized.runtimes import Feeds, Runtime

LAYERS = ("Conv", "MatMul", "Gemm")
_WHICH = "which"
_STEPS = 255.0

Errors = dict[str, float]
Progress = Callable[[int, int], None]


def layer_errors(
    graph: Path,
    examples: Sequence[Feeds],
    runtime: Runtime,
    work: Path,
    threads: int,
    progress: Progress | None = None,
) -> Errors:
    """What each layer of an ONNX graph loses: 1 - cosine between the vectors with and without
    its inputs rounded, mean over the examples. Weights are not rounded: by channel they lose
    far less.

    Args:
        work: a folder for the graph with switches.
    """
    switched, layers = work / "switched.onnx", _switched(graph, work / "switched.onnx")
    target = work / f"switched-run{runtime.SUFFIX}"
    runtime.convert(switched, target)
    run = runtime.load(target, "float32", threads)

    def vectors(which: int) -> NDArray[np.float64]:
        chosen = np.array([which], np.int64)
        found = np.concatenate([run({**feeds, _WHICH: chosen}) for feeds in examples])
        whole = found.astype(np.float64)
        unit: NDArray[np.float64] = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        return unit

    exact, errors = vectors(-1), {}
    for number, name in enumerate(layers):
        lost = 1 - (vectors(number) * exact).sum(1)
        errors[name] = float(np.nan_to_num(lost, nan=2.0).mean())  # nan: there is nothing left
        if progress is not None:
            progress(number + 1, len(layers))
    return errors


def worst_layers(errors: Mapping[str, Errors], share: float) -> dict[str, tuple[str, ...]]:
    """The fewest layers of all graphs without which what the others lose, summed, is at most
    this share of what all lose."""
    ranked = sorted(
        ((lost, side, name) for side, own in errors.items() for name, lost in own.items()),
        reverse=True,
    )
    left = sum(lost for lost, _, _ in ranked)
    most, kept = share * left, {side: list[str]() for side in errors}
    for lost, side, name in ranked:
        if left <= most:
            break
        kept[side].append(name)
        left -= lost
    return {side: tuple(names) for side, names in kept.items()}


def _switched(source: Path, target: Path) -> list[str]:
    """Writes the graph with a switch before each input of a layer that is no weight; gives the
    names of the layers. The input `which` is the number of the layer that is rounded."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph = model.graph
    constant = {weight.name for weight in graph.initializer}
    layers = [node for node in graph.node if node.op_type in LAYERS]
    graph.input.append(helper.make_tensor_value_info(_WHICH, TensorProto.INT64, [1]))
    graph.initializer.append(
        numpy_helper.from_array(np.array(_STEPS, np.float32), f"{_WHICH}.steps")
    )
    for number, node in enumerate(layers):
        graph.initializer.append(
            numpy_helper.from_array(np.array([number], np.int64), f"{_WHICH}.{number}")
        )
        before = [
            helper.make_node("Equal", [_WHICH, f"{_WHICH}.{number}"], [f"{_WHICH}.{number}.on"])
        ]
        for place, name in enumerate(node.input):
            if name in constant or not name:
                continue
            own = f"{_WHICH}.{number}.{place}"
            low, high, step, exact = (f"{own}.{part}" for part in ("low", "high", "step", "exact"))
            before += [
                helper.make_node("ReduceMin", [name], [low], keepdims=0),
                helper.make_node("ReduceMax", [name], [high], keepdims=0),
                helper.make_node("Sub", [high, low], [f"{own}.range"]),
                helper.make_node("Div", [f"{own}.range", f"{_WHICH}.steps"], [step]),
                helper.make_node("Sub", [name, low], [f"{own}.above"]),
                helper.make_node("Div", [f"{own}.above", step], [exact]),
                helper.make_node("Round", [exact], [f"{own}.round"]),
                helper.make_node("Mul", [f"{own}.round", step], [f"{own}.back"]),
                helper.make_node("Add", [f"{own}.back", low], [f"{own}.rounded"]),
                helper.make_node("Where", [f"{_WHICH}.{number}.on", f"{own}.rounded", name], [own]),
            ]
            node.input[place] = own
        where = list(graph.node).index(node)
        for added in reversed(before):
            graph.node.insert(where, added)
    onnx.save(model, target)
    return [node.name for node in layers]
