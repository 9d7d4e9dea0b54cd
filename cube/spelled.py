"""A cube as Python code that makes and opens it again, every automatic choice spelled out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cube.archive.assembly import Options
from cube.archive.build import digest
from cube.grid import brief_crs
from cube.info import band_words, describe
from cube.manifest.open import Manifest
from cube.manifest.stored import read_stored

_BY_THE_BUILD = ("archive", "harmonized")
"""Attributes that `build` writes."""


def as_python(manifest: Manifest) -> str:
    """Return code that builds the cube's manifest (in the cache folder) and opens it, as `manifest` and `ds`."""
    facts = describe(manifest)
    lines = [f"# {manifest.name}, version {manifest.version}", "import cube", ""]
    lines += [*_build(manifest), "", *_grid(facts), *_bands(facts), *_open(manifest)]
    return "\n".join(lines) + "\n"


def _build(manifest: Manifest) -> Iterator[str]:
    stored = read_stored(manifest)
    built, options = manifest.built, Options.from_json(manifest.built)
    what = built.get("what")
    if what is None or built.get("sources") != digest(each.source.href for each in stored):
        if any(each.source.asset for each in stored):
            yield "# Its sources are not those of a file or folder alone: they were objects, or changed since."
            yield f"manifest = cube.open_manifest({manifest.url!r})"
            return
        what = sorted(each.source.href for each in stored)
    yield from _reasons(manifest)
    yield "manifest = cube.build("
    yield from _what(what)
    attributes = {key: value for key, value in manifest.attributes.items() if key not in _BY_THE_BUILD}
    spelled = {
        "name": manifest.name,
        "bands": None if options.bands is None else list(options.bands),
        "pattern": options.pattern or built.get("inferred"),
        "bands_as": options.bands_as,
        "time": options.time,
        "crs": options.crs,
        "harmonize": options.harmonize,
        "fail_on_error": options.fail_on_error,
        "fill_value": options.fill_value,
        "attributes": attributes,
    }
    yield from _arguments(spelled)
    yield ")"


def _what(what: str | list[str]) -> Iterator[str]:
    if isinstance(what, str):
        yield f"    {what!r},"
        return
    yield "    ["
    yield from (f"        {each!r}," for each in what)
    yield "    ],"


def _reasons(manifest: Manifest) -> Iterator[str]:
    for name in _BY_THE_BUILD:
        if name in manifest.attributes:
            yield f"# {name}: {manifest.attributes[name]}"
    for what, why in manifest.left_out:
        yield f"# left out: {what}: {why}".replace("\n", " ")


def _grid(facts: Mapping[str, Any]) -> Iterator[str]:
    for grid in facts["grids"]:
        (height, width), (dx, dy), crs = grid["shape"], grid["resolution"], brief_crs(grid["crs"])
        corner = f"{grid['bounds'][0]:.10g}, {grid['bounds'][3]:.10g}"
        yield f"# {height} rows x {width} columns of {dx:.10g} x {dy:.10g}, upper left corner {corner}, {crs}"


def _bands(facts: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# {band['name']}: {band_words(band)}" for band in facts["bands"])
    yield from (f"# read by GDAL: {count} of the sources: {reason}" for reason, count in facts["gdal"].items())


def _open(manifest: Manifest) -> Iterator[str]:
    times = manifest.times
    yield "ds = cube.open_cube("
    yield "    manifest,"
    yield from _arguments(
        {
            "bands": [band.name for band in manifest.bands],
            "bbox": None,
            "time": None if times is None else (str(times[0]), str(times[-1])),
            "chunks": None,
            "level": 0,
            "mask_and_scale": True,
        }
    )
    yield ")"


def _arguments(values: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"    {name}={_literal(value)}," for name, value in values.items())


def _literal(value: Any) -> str:
    return f"float({str(value)!r})" if isinstance(value, float) and not math.isfinite(value) else repr(value)
