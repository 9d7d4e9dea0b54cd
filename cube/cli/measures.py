"""The command that measures reads of a cube: bench."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cube.cli.options import BandNames, Cube, Json, parse_names, progress

if TYPE_CHECKING:
    from cube.bench import Row


def bench(
    name: Cube,
    peer: Annotated[str | None, typer.Option("--peer", help="Read the same with another library: odc-stac.")] = None,
    bands: BandNames = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Runs after the first.", min=1)] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Another number is another place.")] = 0,
    max_bytes: Annotated[str, typer.Option("--max-bytes", help="The most that one run may fetch.")] = "500MB",
    as_json: Json = False,
) -> None:
    """Measure reads of a cube on this machine and network."""
    from cube.bench import measure, plan_workloads, time_opening
    from cube.dataset import open_named
    from cube.explain import parse_bytes

    manifest, opened = time_opening(lambda: open_named(name))
    workloads = plan_workloads(manifest, bands=parse_names(bands), seed=seed, max_bytes=parse_bytes(max_bytes))
    with progress("Reading") as report:
        rows = [opened, *measure(manifest, workloads, peer=peer, rounds=rounds, progress=report)]
    if as_json:
        sys.stdout.write(json.dumps([row.to_json() for row in rows], indent=2) + "\n")
    else:
        sys.stdout.write(_table(rows, rounds))


def _table(rows: Sequence[Row], rounds: int) -> str:
    header = ("", "reader", "first s", "median s", "requests", "MB", "MB/s", "x fetch")
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = ["  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)) for line in cells]
    told = [f"{workload}: {what}" for workload, what in dict.fromkeys((row.workload, row.what) for row in rows)]
    problems = [f"{row.workload} by {row.reader}: {row.problem}" for row in rows if row.problem]
    agree = [] if problems or all(row.reader == "cogcube" for row in rows) else ["all answers are equal"]
    told.append(f"first s: the first run; median s: of the next {rounds}, taken in turn")
    told.append("x fetch: times what fetching the same bytes takes, with nothing decoded")
    return "\n".join([*(line.rstrip() for line in lines), "", *told, *agree, *problems]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    speed = row.bytes / (row.seconds or row.first_s or 1) / 1e6 if row.bytes else None
    return (
        row.workload,
        row.reader,
        "-" if row.first_s is None else f"{row.first_s:.3f}",
        "-" if row.seconds is None else f"{row.seconds:.3f}",
        "-" if row.requests is None else f"{row.requests:,}",
        "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        "-" if speed is None else f"{speed:.0f}",
        "-" if row.ratio is None else f"{row.ratio:.2f}",
    )
