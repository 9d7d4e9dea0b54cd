"""The commands that write files from a cube: compute, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cube.cli.options import Bbox, Level, Name, Time, parse_bbox, parse_time, progress
from cube.errors import SelectionError


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
        str | None, typer.Option("--cluster", help="local, or a scheduler's address (tcp://host:8786).")
    ] = None,
) -> None:
    """Compute an index of a cube, masked and composited, into a file."""
    from cube.dataset import find_manifest
    from cube.engine.cluster import connect, iterate_blocks
    from cube.views import open_view
    from cube.write import write_cog, write_zarr

    if output.suffix not in (".tif", ".tiff", ".zarr"):
        raise SelectionError(f"{output}: give a name that ends with .tif (a COG) or .zarr (a store)")
    array = open_view(
        find_manifest(name),
        index,
        mask=mask,
        composite=composite,
        freq=freq,
        bbox=parse_bbox(bbox),
        time=parse_time(time),
        level=level,
    )
    with connect(cluster) as client:
        if output.suffix == ".zarr":
            write_zarr(output, array.to_dataset())
        else:
            with progress("computing blocks") as report:
                total = array.data.npartitions
                blocks = iterate_blocks(array.data, client)
                write_cog(output, array, blocks, progress=lambda done: report(done, total))
    size = ", ".join(f"{dim} {length}" for dim, length in array.sizes.items())
    sys.stdout.write(f"{output}: {array.attrs['long_name']}; {size}\n")


def export(
    name: Name,
    kerchunk: Annotated[Path, typer.Option("--kerchunk", help="Write Kerchunk references: .json or .parq.")],
    level: Level = 0,
) -> None:
    """Write static references that others open without cogcube, where they can describe the cube."""
    from cube.dataset import find_manifest
    from cube.references import to_kerchunk

    to_kerchunk(find_manifest(name), kerchunk, level=level)
    # fsspec reads Parquet references with fastparquet alone.
    libraries = "xarray kerchunk imagecodecs-numcodecs" + ("" if kerchunk.suffix == ".json" else " fastparquet")
    sys.stdout.write(
        f'{kerchunk}: open it with `pip install {libraries}` and\n  xr.open_dataset("{kerchunk}", engine="kerchunk")\n'
    )
