"""The folder of an optimised model: where it may be written, its card, and its table."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.optimizing import Attempt
from indexing.durable import flush
from indexing.errors import ModelError
from indexing.models.config_file import CONFIG
from indexing.models.optimized.folder import (
    CARD,
    Gate,
    OptimizedConfig,
    is_optimized_folder,
    write_config,
)

SURE = 3.0  # lost hits that none seen in n queries does not rule out, at 95% (rule of three)


def check_target(out: Path) -> None:
    """Raises ModelError for what is there and no optimised model."""
    if out.is_dir() and (not any(out.iterdir()) or is_optimized_folder(out)):
        return
    if out.exists():
        raise ModelError(f"{out} is there and no optimised model: give --out another folder")


def write_optimized(made: Attempt, out: Path) -> None:
    """Writes the model with its gate and card into a folder; config.json, which makes it a
    model, comes last."""
    (out / CONFIG).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        path.unlink()
    for name in made.config.files:
        shutil.copyfile(made.folder / name, out / name)
        flush(out / name)
    config = made.config.model_copy(update={"gate": made.gate})
    (out / CARD).write_text(card(config), encoding="utf-8")
    write_config(out, config)


def card(config: OptimizedConfig) -> str:
    """The model card."""
    libraries = ", ".join(f"{name} {version}" for name, version in config.versions.items())
    kept = [f"{len(names)} of the {side} tower" for side, names in config.kept.items() if names]
    lines = [
        f"# {config.parent.name}, optimised for {config.runtime} ({config.precision})",
        "",
        f"Made by `shoplens optimize` with {libraries} of the model {config.parent.name} "
        f"(fingerprint {config.parent.fingerprint[:12]}). Pictures and texts are prepared as for "
        "that model, and its card holds for this one.",
        "",
    ]
    if config.precision == "int8":
        lines += [
            f"Ranges were taken from {config.calibration['picture']} pictures and "
            f"{config.calibration['text']} titles. Layers kept in floats ({config.floats}): "
            f"{', '.join(kept) or 'none'}.",
            "",
        ]
    gate = config.gate
    if gate is not None:
        verdict = (
            "An index of the parent takes its queries."
            if gate.passed
            else "**It did not pass and was forced**: an index of the parent does not take its "
            "queries."
        )
        lines += [*result_table(gate), "", verdict, ""]
    return "\n".join(lines)


def result_table(gate: Gate) -> Iterator[str]:
    """The measurement as a table of Markdown, and what to know about it."""
    yield f"Measured on {gate.catalog}; changes with 95% intervals, paired over queries."
    yield ""
    yield "| queries | pictures by | measure | parent | optimised | change |"
    yield "|---|---|---|---|---|---|"
    for one in gate.recalls:
        change = f"{one.change.mean:+.4f} [{one.change.low:+.4f}, {one.change.high:+.4f}]"
        by = "itself" if one.against == "own" else "its parent"
        yield (
            f"| {one.task} ({one.queries:,}) | {by} | Recall@{one.cutoff} | {one.before:.4f} | "
            f"{one.after:.4f} | {change} |"
        )
    yield ""
    told = [
        f"{kind} {mean:.5f} on average, {least:.5f} at least"
        for kind, (mean, least) in gate.cosines.items()
    ]
    yield f"Cosine with the parent's vectors: {'; '.join(told)}."
    fewest = min(one.queries for one in gate.recalls)
    if SURE / fewest > gate.margin:
        yield (
            f"Few queries: {fewest:,} in which nothing is lost leave a loss of {SURE / fewest:.4f} "
            f"possible (rule of three); to rule out {gate.margin:g} takes "
            f"{round(SURE / gate.margin):,}."
            if gate.margin
            else f"Few queries: {fewest:,}."
        )
