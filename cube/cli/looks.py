"""The commands that say what a cube is, and what reading it costs: info, explain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cube.cli.options import (
    BandNames,
    Bbox,
    Json,
    Level,
    Name,
    Time,
    parse_bbox,
    parse_chunks,
    parse_names,
    parse_time,
    print_facts,
)

MaxBytes = Annotated[str | None, typer.Option("--max-bytes", help="Refuse to read more: 2GB, 500MB, 64MiB.")]
MaxRequests = Annotated[int | None, typer.Option("--max-requests", help="Refuse to ask more often.", min=0)]


def info(
    name: Name,
    preview: Annotated[Path | None, typer.Option("--preview", help="Write a picture (PNG).")] = None,
    time: Time = None,
    as_python: Annotated[bool, typer.Option("--as-python", help="Print Python that makes and opens the cube.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Whether to ask a remote store how fast it answers.")
    ] = True,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="What references may point to, besides their own folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a cube holds, and how far away; with --preview, draw it."""
    from cube.dataset import find_manifest, named_foreign
    from cube.info import describe, describe_foreign, measure_distance, write_preview

    foreign = named_foreign(name, allow=allow or ())
    if foreign is not None:
        print_facts(describe_foreign(foreign, name=name), as_json=as_json)
        return
    manifest = find_manifest(name)
    shown = write_preview(manifest, preview, time=parse_time(time)) if preview is not None else None
    if as_python:
        from cube.spelled import as_python as spell

        sys.stdout.write(spell(manifest))
    else:
        distance = measure_distance(manifest) if measure else None
        print_facts(describe(manifest) | {"first_byte": distance}, as_json=as_json)
    if shown is not None:
        sys.stderr.write(f"{preview}: {shown}\n")


def explain(
    name: Name,
    bands: BandNames = None,
    bbox: Bbox = None,
    time: Time = None,
    level: Level = 0,
    chunks: Annotated[str | None, typer.Option("--chunks", help="auto, or lengths: time=1,y=512,x=512.")] = None,
    crs: Annotated[str | None, typer.Option("--crs", help="Read in this CRS, as EPSG:32633.")] = None,
    resolution: Annotated[float | None, typer.Option("--resolution", help="Read at this size of a pixel.")] = None,
    groupby: Annotated[str | None, typer.Option("--groupby", help="A step in time: time, solar_day, id.")] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="Predict for a store this far away.", min=0)
    ] = None,
    max_bytes: MaxBytes = None,
    max_requests: MaxRequests = None,
    sources: Annotated[bool, typer.Option("--sources", help="List what each source costs.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a read costs before it is done: requests, bytes, seconds, memory, and how to do it."""
    from cube.dataset import open_cube
    from cube.explain import parse_bytes

    ds = open_cube(
        name,
        parse_names(bands),
        bbox=parse_bbox(bbox),
        time=parse_time(time),
        level=level,
        chunks=parse_chunks(chunks),
        mask_and_scale=False,
        crs=crs,
        resolution=resolution,
        groupby=groupby,  # type: ignore[arg-type]  # checked there
    )
    found = ds.cube.explain(latency_ms)
    found.require(max_bytes=None if max_bytes is None else parse_bytes(max_bytes), max_requests=max_requests)
    if as_json:
        facts = found.to_json()
        if not sources:
            facts["sources"] = len(found.sources)
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    sys.stdout.write(f"{found}\n")
    for each in found.sources if sources else ():
        what = "read by GDAL" if each.path == "gdal" else f"{each.requests:,} requests, {each.bytes:,} bytes"
        sys.stdout.write(f"{each.href}: {each.tiles:,} tiles, {each.sparse:,} left out by the file; {what}\n")
