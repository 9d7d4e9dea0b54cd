"""The commands that make a cube, change it and look after it: build, append, refresh, check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cube.cli.options import (
    BandNames,
    Bbox,
    Catalog,
    Cube,
    Json,
    Sources,
    parse_bbox,
    parse_names,
    print_facts,
    progress,
)


def build(
    source: Sources,
    name: Annotated[str, typer.Option("--name", help="The cube's name in the catalogue.")],
    catalog: Catalog = Path("catalog.yaml"),
    bands: BandNames = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="How names are made: '{tile}_{band}_{time:%Y%m%d}.tif'.")
    ] = None,
    bands_as: Annotated[
        str | None,
        typer.Option("--bands-as", help="time:%Y where the bands of a file are dates."),
    ] = None,
    no_time: Annotated[bool, typer.Option("--no-time", help="Make layers without time.")] = False,
    crs: Annotated[str | None, typer.Option("--crs", help="Of files that name none, as EPSG:4326.")] = None,
    no_harmonize: Annotated[
        bool, typer.Option("--no-harmonize", help="Take scales and offsets as files and catalogues say them.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out what cannot be read, and say so.")
    ] = False,
    fill_value: Annotated[
        float | None, typer.Option("--fill-value", help="Marks holes of integer bands without a nodata value.")
    ] = None,
    description: Annotated[str, typer.Option("--description", help="What the cube is.")] = "",
    licence: Annotated[str, typer.Option("--license", help="SPDX name of the data's licence.")] = "",
    as_json: Json = False,
) -> None:
    """Read the headers of COGs and write the cube's manifest and its entry in the catalogue."""
    from cube.archive.build import build as build_manifest
    from cube.catalog import add_entry, manifest_entry
    from cube.info import describe

    attributes = {key: value for key, value in (("description", description), ("license", licence)) if value}
    folder = catalog.parent / f"{name}.cube"
    entry = manifest_entry(name, folder, catalog=catalog, description=description, license=licence or None)
    with progress("reading headers") as report:
        manifest = build_manifest(
            _what(source),
            name=name,
            to=folder,
            bands=parse_names(bands),
            pattern=pattern,
            bands_as=bands_as,
            time=not no_time,
            crs=crs,
            harmonize=not no_harmonize,
            fail_on_error=not skip_unreadable,
            fill_value=fill_value,
            attributes=attributes,
            progress=report,
        )
    add_entry(catalog, entry)
    print_facts(describe(manifest), as_json=as_json)


def add(
    what: Annotated[str, typer.Argument(help="A Zarr store, Kerchunk references or an Icechunk repository.")],
    name: Annotated[str, typer.Option("--name", help="Its name in the catalogue.")],
    catalog: Catalog = Path("catalog.yaml"),
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="What references may point to, besides their own folder.")
    ] = None,
    description: Annotated[str, typer.Option("--description", help="What it is.")] = "",
    licence: Annotated[str, typer.Option("--license", help="SPDX name of the data's licence.")] = "",
    as_json: Json = False,
) -> None:
    """Open what others wrote, and write its entry in the catalogue."""
    from cube.catalog import add_entry, foreign_entry
    from cube.errors import CatalogError
    from cube.foreign.find import find_foreign
    from cube.info import describe_foreign

    foreign = find_foreign(what, allow=tuple(allow or ()))
    if foreign is None:
        raise CatalogError(
            f"{what} is no Zarr store (.zarr), no references (.json, .parq) and no Icechunk repository (.icechunk); "
            "cube build makes a cube of COGs"
        )
    facts = describe_foreign(foreign, name=name)  # first of all: what cannot be opened is no entry
    add_entry(catalog, foreign_entry(name, foreign, catalog=catalog, description=description, license=licence or None))
    print_facts(facts, as_json=as_json)


def append(name: Cube, source: Sources, as_json: Json = False) -> None:
    """Add sources to a cube, with the options that it was built with; what is there already is left alone."""
    from cube.archive.update import append as append_sources
    from cube.dataset import open_named

    with progress("reading headers") as report:
        done = append_sources(open_named(name), _what(source), progress=report)
    _print(done, as_json=as_json)


def refresh(
    name: Cube,
    every: Annotated[bool, typer.Option("--all", help="Read all headers again, not only those that changed.")] = False,
    drop_vanished: Annotated[
        bool, typer.Option("--drop-vanished", help="Take sources that are gone out of the cube.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read the headers of sources that changed again, and replace what the cube knows of them."""
    from cube.archive.update import refresh as refresh_sources
    from cube.dataset import open_named

    with progress("looking at sources") as report:
        done = refresh_sources(open_named(name), every=every, drop_vanished=drop_vanished, progress=report)
    _print(done, as_json=as_json)


def place(
    name: Cube,
    crs: Annotated[str | None, typer.Option("--crs", help="As EPSG:32633.")] = None,
    resolution: Annotated[
        float | None, typer.Option("--resolution", help="Size of a pixel in units of the CRS.")
    ] = None,
    bbox: Bbox = None,
    anchor: Annotated[str | None, typer.Option("--anchor", help="Where pixels begin: edge or center.")] = None,
    resampling: Annotated[
        str | None, typer.Option("--resampling", help="nearest, bilinear, cubic, average, or BAND=HOW,*=HOW.")
    ] = None,
    groupby: Annotated[
        str | None, typer.Option("--groupby", help="What one step in time is: time, solar_day or id.")
    ] = None,
    fuse: Annotated[
        str | None, typer.Option("--fuse", help="first, last, newest, least_cloudy, mean or median.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say once on which pixels and dates a cube opens whose sources lie on several grids, or overlap."""
    from cube.dataset import open_named
    from cube.info import describe
    from cube.placing import place as place_cube

    given: dict[str, Any] = {"resampling": _ways(resampling), "groupby": groupby, "fuse": fuse}
    grid: dict[str, Any] = {"crs": crs, "resolution": resolution, "bbox": parse_bbox(bbox), "anchor": anchor}
    print_facts(describe(place_cube(open_named(name), **grid, **given)), as_json=as_json)


def _ways(text: str | None) -> str | dict[str, str] | None:
    """Return a way of resampling, or ways by band of "scl=nearest,*=cubic"."""
    if text is None or "=" not in text:
        return text
    pairs = (part.partition("=") for part in text.split(","))
    return {band.strip(): how.strip() for band, _, how in pairs}


def check(
    name: Cube,
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Judge offsets by the darkest pixels, too.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say which sources changed, vanished, cannot be read, or are not what their catalogue says."""
    from cube.archive.check import check as check_sources
    from cube.dataset import open_named

    with progress("looking at sources") as progressed:
        report = check_sources(open_named(name), pixels=pixels, progress=progressed)
    _print(report, as_json=as_json)
    if not report.ok:
        raise SystemExit(1)


def _what(source: list[str]) -> str | list[str]:
    return source if len(source) > 1 else source[0]


def _print(found: Any, *, as_json: bool) -> None:
    sys.stdout.write(f"{json.dumps(found.to_json(), indent=2) if as_json else found}\n")
