"""The commands that write files from a cube: compute, export."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from cube.cli.looks import MaxBytes, MaxRequests
from cube.cli.options import Bbox, Level, Name, Time, parse_bbox, parse_time, progress
from cube.errors import SelectionError

if TYPE_CHECKING:
    from xarray import DataArray

    from cube.explain import Explanation
    from cube.io.trace import Trace
    from cube.manifest.open import Manifest


def compute(
    name: Name,
    index: Annotated[str, typer.Argument(help="ndvi, ndwi or nbr.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .tif (COG) or a .zarr store.")],
    composite: Annotated[str | None, typer.Option("--composite", help="median, mean, max or min over time.")] = None,
    freq: Annotated[str | None, typer.Option("--freq", help="One composite a period: MS, QS, YS, 10D.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="scl, or BAND=VALUES with the values to keep.")] = None,
    bbox: Bbox = None,
    time: Time = None,
    level: Level = 0,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="local[:N], an address, gateway:URL?workers=N, or slurm:N (pbs, lsf, ...)."),
    ] = None,
    max_bytes: MaxBytes = None,
    max_requests: MaxRequests = None,
) -> None:
    """Compute an index of a cube, masked and composited, into a file; say what it cost."""
    from cube.algebra.masks import parse_mask
    from cube.dataset import find_manifest
    from cube.engine.cluster import connect, iterate_blocks
    from cube.explain import parse_bytes
    from cube.io.trace import trace
    from cube.views import View, open_view
    from cube.write import write_cog, write_zarr

    if output.suffix not in (".tif", ".tiff", ".zarr"):
        raise SelectionError(f"{output}: give a name that ends with .tif (a COG) or .zarr (a store)")
    manifest, part = find_manifest(name), _Part(bbox=parse_bbox(bbox), time=parse_time(time))
    array = open_view(manifest, index, mask=mask, composite=composite, freq=freq, level=level, **part)
    bands = View(index=index.lower(), mask=parse_mask(mask) if mask else None).bands
    plan = _explain(manifest, array, bands, level, part, is_composite=composite is not None)
    plan.require(max_bytes=None if max_bytes is None else parse_bytes(max_bytes), max_requests=max_requests)
    began = perf_counter()
    with trace() as asked, connect(cluster) as client:
        if output.suffix == ".zarr":
            write_zarr(output, array.to_dataset())
        else:
            with progress("computing blocks") as report:
                total = array.data.npartitions
                blocks = iterate_blocks(array.data, client)
                write_cog(output, array, blocks, progress=lambda done: report(done, total))
    size = ", ".join(f"{dim} {length}" for dim, length in array.sizes.items())
    sys.stdout.write(f"{output}: {array.attrs['long_name']}; {size}\n")
    if cluster is None:  # what workers ask stands in traces of their own
        sys.stderr.write(f"{_compare(plan, asked, perf_counter() - began)}\n")


class _Part(TypedDict):
    bbox: tuple[float, float, float, float] | None
    time: str | tuple[str, str] | None


def _explain(
    manifest: Manifest, array: DataArray, bands: Sequence[str], level: int, part: _Part, *, is_composite: bool
) -> Explanation:
    """Return what the reads of a view cost."""
    from cube.explain import explain
    from cube.selection import select
    from cube.spec import CubeSpec

    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    selection = select(manifest, spec, bands=bands, **part)
    # A composite has other dates than its blocks, each of which holds all.
    lengths = ((len(selection.times),), *array.data.chunks[-2:]) if is_composite else array.data.chunks
    return explain(selection, lengths)


def _compare(plan: Explanation, asked: Trace, seconds: float) -> str:
    """Return what was planned and what it was."""
    from cube.engine.cost import readable_bytes, readable_seconds

    again = sum(each.attempt > 1 or each.hedge for each in asked.records)
    repeated = f" ({again:,} of them again)" if again else ""
    return (
        f"planned {plan.requests:,} requests, {readable_bytes(plan.bytes)}, {readable_seconds(plan.predicted_s)} of "
        f"reading; was {asked.requests:,} requests{repeated}, {readable_bytes(asked.bytes)}, "
        f"{readable_seconds(seconds)} with arithmetic and writing"
    )


def export(
    name: Name,
    kerchunk: Annotated[
        Path | None, typer.Option("--kerchunk", help="Write Kerchunk references: .json or .parq.")
    ] = None,
    icechunk: Annotated[
        Path | None, typer.Option("--icechunk", help="Write virtual chunks to an Icechunk repository (a folder).")
    ] = None,
    level: Level = 0,
    split: Annotated[
        bool, typer.Option("--split", help="Write groups of files that are alike, where one cannot say the whole.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Write stored numbers, scale and offset beside them, where files differ in these."),
    ] = False,
) -> None:
    """Write static references that others open without cogcube, where they can describe the cube."""
    from cube.dataset import find_manifest
    from cube.errors import SelectionError

    if kerchunk is None and icechunk is None:
        raise SelectionError("say what to write: --kerchunk FILE.json, --kerchunk FOLDER.parq or --icechunk FOLDER")
    manifest = find_manifest(name)
    if kerchunk is not None:
        from cube.references.kerchunk import to_kerchunk

        to_kerchunk(manifest, kerchunk, level=level, split=split, raw=raw)
        # fsspec reads Parquet references with fastparquet alone.
        libraries = "xarray kerchunk imagecodecs-numcodecs" + ("" if kerchunk.suffix == ".json" else " fastparquet")
        sys.stdout.write(
            f"{kerchunk}: open it with `pip install {libraries}` and\n"
            f'  xr.open_dataset("{kerchunk}", engine="kerchunk")\n'
        )
    if icechunk is not None:
        from cube.references.icechunk import to_icechunk

        tiles = to_icechunk(manifest, icechunk, level=level)
        sys.stdout.write(f'{icechunk}: {tiles:,} virtual chunks; open_cube("{icechunk}", allow=[...]) reads them\n')
