"""The page on reranking by attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.attributes.reranking import RECALLS, Effect, TaskResult
from benchmarks.statistics import Interval
from indexing.attributes.record import Gate
from indexing.durable import replace_bytes

PAGE, FIGURES = "report.md", "figures.json"
_ORDERS = {
    "shipped": "as an index does it",
    "fitted": "weights without the gate",
    "named": "the same, of queries their words alone",
    "unsaid": "the same, titles do not name the values",
    "shuffled": "the same, attributes of other products",
    "oracle": "the same, the merchants' own values",
    "demotion": "demotion alone",
}


def write_rerank_report(results: Mapping[str, TaskResult], out: Path, command: str) -> None:
    """Writes report.md, and its figures as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Reranking by attributes",
        "",
        "Changes against the cosine alone on the same queries and candidates, with 95% intervals "
        "over titles. The attributes of all products are taken as unknown: what counts is what "
        "was predicted of them.",
        "",
        f"    {command}",
        "",
    ]
    for name, result in results.items():
        lines += [f"## {name}: {result.asked}", "", *task_lines(result), ""]
    replace_bytes(out / PAGE, "\n".join(lines).encode())
    figures = {name: result.to_json() for name, result in results.items()}
    replace_bytes(out / FIGURES, (json.dumps(figures, indent=2) + "\n").encode())


def task_lines(result: TaskResult) -> list[str]:
    """What there is to say of one task, as Markdown."""
    plain = ", ".join(f"{name} {interval}" for name, interval in result.plain.items())
    record = result.record
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in record.weights.items())
    heads = [f"R@{k}" for k in RECALLS]
    return [
        f"{result.queries:,} queries. By the cosine alone: {plain}.",
        "",
        *(
            f"Queries surely say {name} in {share:.1%} of the cases, and rightly in {right:.1%} of "
            "these."
            for name, (share, right) in result.said.items()
        ),
        "",
        *(f"Gate of {kind}: {_gate_line(gate)}." for kind, gate in record.gates.items()),
        f"On half of {record.asked:,} queries of the other products; "
        f"weights {weights}, temperature {record.temperature:.3f}, gamma {record.gamma:g}, demote "
        f"by {', '.join(record.demote) or 'nothing'}. A hard filter would lose {result.lost:.1%} "
        "of the right products among the candidates. Time: "
        f"{result.milliseconds[0]:.1f} ms to read a query, {result.milliseconds[1]:.1f} ms to put "
        "its candidates into order.",
        "",
        f"| order | {' | '.join(heads)} | nDCG@10 | agreement@10 | won / lost / tied | sign test |",
        "|---" * (5 + len(heads)) + "|",
        *(_row(what, getattr(result, name)) for name, what in _ORDERS.items()),
    ]


def _gate_line(gate: Gate) -> str:
    sorts = ", ".join(f"{name} {_signed(Interval(*own))}" for name, own in gate.gains.items())
    state = "open" if gate.open else "shut"
    return f"{state}, nDCG@10 {_signed(Interval(*gate.gain))} ({sorts})"


def _row(what: str, effect: Effect) -> str:
    cells = [_signed(effect.recall[k]) for k in RECALLS]
    cells += [_signed(effect.ndcg), _signed(effect.agreement)]
    cells += [f"{effect.wins} / {effect.losses} / {effect.ties}", f"{effect.sign:.2g}"]
    return f"| {what} | {' | '.join(cells)} |"


def _signed(interval: Interval) -> str:
    return f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
