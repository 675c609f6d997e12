"""The command `shoplens info`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexing.attributes_cli import filled_lines
from indexing.cli import fields_line, rows_line

if TYPE_CHECKING:
    from indexing.attributes.record import AttributesRecord
    from indexing.manifest import Manifest
    from indexing.match_record import MatchRecord


def info(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that `shoplens index` wrote.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="The manifest as JSON and nothing else.")
    ] = False,
) -> None:
    """Check an index folder and say what is in it.

    Example, on an index made with `shoplens index catalog.csv --out shop-index`:

        shoplens info shop-index
    """
    from indexing.committing import earlier_versions
    from indexing.store import open_index

    index = open_index(folder)
    manifest = index.manifest
    earlier = earlier_versions(folder)
    if as_json:
        typer.echo(json.dumps(manifest.model_dump(mode="json"), indent=2))
        return
    for line in _description(folder, manifest, earlier):
        typer.echo(line)
    if manifest.attributes is not None:
        for source in manifest.attributes.sources:
            typer.echo(f"  {source.kind} by {source.name}")
        for line in (*filled_lines(index), *_rerank_lines(manifest.attributes)):
            typer.echo(line)


def _description(folder: Path, manifest: Manifest, earlier: Sequence[Manifest]) -> Iterator[str]:
    first, encoder = manifest.segments[0].counts, manifest.encoder
    made = f"{manifest.created:%Y-%m-%d %H:%M} UTC by shoplens {manifest.shoplens_version}"
    yield f"{folder}: version {manifest.version}, made {made}: {manifest.change}"
    yield rows_line(first)
    if len(manifest.segments) == 1:
        yield f"  pictures: {first.images:,} in the index, {first.images_rejected:,} rejected"
    else:
        yield (
            f"  since:    {len(manifest.segments) - 1:,} updates; now {manifest.products:,} "
            f"products and {manifest.images:,} pictures"
        )
    if first.fields_rejected:
        yield fields_line(first.fields_rejected)
    yield f"  encoder:  {encoder.name}, {encoder.dim} numbers a picture, {encoder.fingerprint[:12]}"
    yield f"  index:    {manifest.kind}"
    if manifest.match is not None:
        yield from _match_lines(manifest.match)
    files = sum(len(segment.files) for segment in manifest.segments)
    yield f"  files:    {files}, {manifest.bytes / 1e6:,.1f} MB, all as the manifest says"
    for old in earlier:
        yield f"  kept:     version {old.version}, {old.created:%Y-%m-%d %H:%M} UTC: {old.change}"


def _rerank_lines(attributes: AttributesRecord) -> Iterator[str]:
    """For each kind of query what puts answers into order, and what that gains."""
    for name, least in attributes.sure_from.items():
        sure = "never read off words" if least is None else f"read off words, sure from {least:.2f}"
        yield f"  queries:  {name}: named by words, or {sure}"
    for mode, record in attributes.rerank.items():
        for source in attributes.sources:
            mean, low, high = record.gates[source.kind].gain
            state = "on" if record.counts(source.names) else "off"
            yield (
                f"  rerank:   {mode} by {source.kind}: {state}, nDCG@10 {mean:+.3f} "
                f"[{low:+.3f}, {high:+.3f}] on {record.queries}"
            )
    for mode, why in attributes.skipped.items():
        yield f"  rerank:   {mode}: off, {why}"


def _match_lines(match: MatchRecord) -> Iterator[str]:
    """How well the index knows, for each kind of query, whether it has what is asked for."""
    for mode, record in match.modes.items():
        limit = (
            "no threshold reaches 95% precision"
            if record.threshold is None
            else f"good from {record.threshold:.2f}, which {record.found:.0%} of those with a "
            "match reach"
        )
        yield (
            f"  match:    {mode}: AUROC {record.auroc:.3f} (cosine alone "
            f"{record.auroc_cosine:.3f}), {limit}; {record.asked:,} {record.queries}"
        )
    for mode, why in match.skipped.items():
        yield f"  match:    {mode}: not calibrated: {why}"
