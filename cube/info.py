"""What a cube is, in words and as a picture: `cube info`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cube.archive.build import count_by_band
from cube.dataset import to_dataset
from cube.engine.cost import readable_bytes as readable_bytes  # noqa: PLC0414 - others import it from here
from cube.errors import CubeError, SelectionError, SourceError
from cube.foreign.find import Foreign
from cube.grid import Levels, brief_crs
from cube.io.stores import local_path, redact
from cube.manifest.open import Manifest
from cube.manifest.tables import integers
from cube.selection import select
from cube.settings import get_settings
from cube.spec import CubeSpec
from cube.tune import measure_first_byte
from cube.write import stretch, write_png

_TRUE_COLOUR = ("red", "green", "blue")
_PREVIEW_EDGE = 768
_MOST_LEFT_OUT = 10
_MOST_GRIDS = 10
_FIRST_BYTES = 3
_PATIENCE_S = 5
_FAR_MS = 150
"""To the first byte: a store of the same region answers sooner, mostly in 10 to 100 ms."""


def describe(manifest: Manifest) -> dict[str, Any]:
    """Return what a cube is, as JSON values: bands, times, grids, sources and their sizes.

    Of a cube of one grid, what there is to say of that stands beside the rest, too.
    """
    times, sources = manifest.times, manifest.source_table()
    counts = count_by_band(manifest)
    on_grid = Counter(integers(sources["grid"]).tolist())
    pixels = sum(levels.full.width * levels.full.height for levels in manifest.grids) * manifest.steps
    grids = [_describe_grid(levels) | {"sources": on_grid[i]} for i, levels in enumerate(manifest.grids)]
    return {
        "name": manifest.name,
        "manifest": manifest.url,
        "version": manifest.version,
        "attributes": manifest.attributes,
        **(_describe_grid(manifest.grids[0]) if len(grids) == 1 else {}),
        "grids": grids,
        "on": None if manifest.said is None else manifest.said.to_json(),
        "times": None if times is None else [str(time) for time in times],
        "bands": [band.to_json() | {"sources": counts[band.name]} for band in manifest.bands],
        "sources": len(manifest),
        "gdal": _gdal_reasons(sources),
        "left_out": [list(each) for each in manifest.left_out],
        "built": manifest.built,
        "source_bytes": int(np.sum(sources["size"].to_numpy())),
        "cube_bytes": int(sum(pixels * np.dtype(band.dtype).itemsize for band in manifest.bands)),
    }


def _describe_grid(levels: Levels) -> dict[str, Any]:
    grid = levels.full
    a, b, _, d, e, _ = grid.transform
    return {
        "crs": grid.crs,
        "shape": [grid.height, grid.width],
        "resolution": [math.hypot(a, d), math.hypot(b, e)],
        "bounds": list(grid.bounds),
        "levels": [[level.height, level.width] for level in levels.grids],
    }


def measure_distance(manifest: Manifest) -> dict[str, Any] | None:
    """Return how long the store of a cube's first remote source takes to its first byte, as JSON values.

    Returns:
        "href", and either "ms" and "far" (whether it is so long that the data must be in another region), or "failed"
        with the reason. None where the sources are local, or nothing may be fetched (`CUBE_OFFLINE`).
    """
    hrefs = (href for href in manifest.source_table()["href"].to_pylist() if local_path(href) is None)
    href = None if get_settings().offline else next(hrefs, None)
    if href is None:
        return None
    found: dict[str, Any] = {"href": redact(href)}
    try:
        ms = measure_first_byte(href, reads=_FIRST_BYTES, timeout_s=_PATIENCE_S) * 1e3
    except TimeoutError:
        return found | {"failed": f"no answer within {_PATIENCE_S} s"}
    except CubeError as error:
        return found | {"failed": error.reason if isinstance(error, SourceError) else str(error)}
    return found | {"ms": round(ms, 1), "far": ms > _FAR_MS}


def _distance_words(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"not measured: {found['failed']} ({found['href']})"
    far = ": you are far from your data; read from its region, on fewer and larger blocks, or copy what you need"
    return f"{found['ms']:.0f} ms{far if found['far'] else ''}"


def _gdal_reasons(sources: pa.Table) -> dict[str, int]:
    """Return how many sources are left to GDAL, by reason."""
    columns = (sources["path"].to_pylist(), sources["reason"].to_pylist())
    counts = Counter(str(reason) for path, reason in zip(*columns, strict=True) if path == "gdal")
    return dict(sorted(counts.items()))


def describe_foreign(foreign: Foreign, *, name: str) -> dict[str, Any]:
    """Return what a Zarr store, references or an Icechunk repository is, as JSON values; reads no chunk.

    Args:
        foreign: Where it is.
        name: What it was asked for by.

    Raises:
        ReferencesError: It cannot be opened.
        ReadError: It cannot be read.
    """
    from cube.foreign.open import open_foreign  # and with it zarr, which takes half a second

    dataset = open_foreign(foreign, mask_and_scale=False)
    times = dataset.indexes.get("time")
    return {
        "name": name,
        "url": redact(foreign.url),
        "kind": foreign.kind,
        "allow": list(foreign.allow),
        "attributes": {key: str(value) for key, value in dataset.attrs.items()},
        "sizes": {str(dim): size for dim, size in dataset.sizes.items()},
        "times": None if times is None or not len(times) else [str(times[0]), str(times[-1])],
        "bands": [
            {
                "name": str(name),
                "dtype": str(band.dtype),
                "dims": [str(dim) for dim in band.dims],
                "chunks": list(band.encoding.get("chunks") or band.shape),
            }
            for name, band in dataset.data_vars.items()
        ],
        "cube_bytes": dataset.nbytes,
    }


_KINDS = {"zarr": "Zarr store", "references": "Kerchunk references", "icechunk": "Icechunk repository"}


def _foreign_in_words(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    first_and_last = facts["times"]
    lines = [
        (_KINDS[facts["kind"]], f"{facts['name']}, {facts['url']}"),
        (
            "arrays",
            f"{readable_bytes(facts['cube_bytes'])}, " + " x ".join(f"{n} {d}" for d, n in facts["sizes"].items()),
        ),
    ]
    if first_and_last is not None:
        lines.append(("time", f"{first_and_last[0][:10]} to {first_and_last[1][:10]}"))
    if facts["allow"]:
        lines.append(("may point to", ", ".join(facts["allow"])))
    for band in facts["bands"]:
        chunks = " x ".join(map(str, band["chunks"]))
        lines.append((f"band {band['name']}", f"{band['dtype']} ({', '.join(band['dims'])}) in chunks of {chunks}"))
    return lines + list(facts["attributes"].items())


def describe_in_words(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of `cube info`: (what, value)."""
    if "kind" in facts:
        return _foreign_in_words(facts)
    times = facts["times"]
    stored, arrays = readable_bytes(facts["source_bytes"]), readable_bytes(facts["cube_bytes"])
    lines = [
        ("cube", f"{facts['name']}, version {facts['version']}"),
        ("manifest", facts["manifest"]),
        ("sources", f"{facts['sources']} files, {stored} ({arrays} as arrays)"),
        ("time", "none: layers" if times is None else f"{len(times)} dates, {times[0][:10]} to {times[-1][:10]}"),
    ]
    grids = sorted(facts["grids"], key=lambda grid: -grid["sources"])
    for grid in grids[:_MOST_GRIDS]:
        lines += _grid_lines(grid, is_one=len(grids) == 1)
    if len(grids) > _MOST_GRIDS:
        lines.append(("grid", f"and {len(grids) - _MOST_GRIDS:,} more (--json has them all)"))
    if facts["on"] is not None:
        lines.append(("opens on", _placing_words(facts["on"])))
    if facts.get("first_byte") is not None:
        lines.append(("first byte", _distance_words(facts["first_byte"])))
    lines += [(f"band {band['name']}", band_words(band)) for band in facts["bands"]]
    lines += [("read by GDAL", f"{_sources(count)}: {reason}") for reason, count in facts["gdal"].items()]
    lines += [(key, str(value)) for key, value in facts["attributes"].items()]
    shown, total = facts["left_out"][:_MOST_LEFT_OUT], len(facts["left_out"])
    lines += [("left out", f"{what}: {why}") for what, why in shown]
    if total > len(shown):
        lines.append(("left out", f"and {total - len(shown):,} more (--json has them all)"))
    return lines


def _placing_words(on: Mapping[str, Any]) -> str:
    """Return on which pixels and dates a cube opens, in words."""
    grid, words = on["grid"], []
    if grid is not None:
        a, b, _, d, e, _ = grid["transform"]
        size = f"{math.hypot(a, d):.10g} x {math.hypot(b, e):.10g}"
        words.append(f"{grid['height']} rows x {grid['width']} columns of {size}, {brief_crs(grid['crs'])}")
    ways = [f"{band} {how}" for band, how in on["resampling"].items()]
    words += [f"resampled by {', '.join(ways) or 'nearest'}"] if grid is not None else []
    return ", ".join([*words, f"steps by {on['groupby']}", f"overlaps: {on['fuse']}"])


def _grid_lines(grid: Mapping[str, Any], *, is_one: bool) -> list[tuple[str, str]]:
    """Return the lines of one grid: all there is to say of the only one, else one."""
    (height, width), (dx, dy) = grid["shape"], grid["resolution"]
    words = f"{height} rows x {width} columns of {dx:.10g} x {dy:.10g}, {brief_crs(grid['crs'])}"
    if not is_one:
        return [("grid", f"{words}, {_sources(grid['sources'])}")]
    levels = ", ".join(f"{level}: {h} x {w}" for level, (h, w) in enumerate(grid["levels"]))
    return [
        ("grid", words),
        ("bounds", ", ".join(f"{value:.10g}" for value in grid["bounds"])),
        ("levels", levels),
    ]


def _sources(count: int) -> str:
    return "1 source" if count == 1 else f"{count:,} sources"


def band_words(band: Mapping[str, Any]) -> str:
    """Return how a band is stored, and how many sources give it, in words."""
    words = [band["dtype"], f"nodata {band['nodata']}" if band["nodata"] is not None else "no nodata value"]
    if (band["scale"], band["offset"]) != (1.0, 0.0):
        words.append(f"x {band['scale']:g} {band['offset']:+g}")
    if band["aliases"]:
        words.append(f"also called {', '.join(band['aliases'])}")
    if band["classes"]:
        words.append(f"{len(band['classes'])} classes")
    return ", ".join([*words, f"{band['sources']} sources"])


def write_preview(manifest: Manifest, path: str | Path, *, time: str | tuple[str, str] | None = None) -> str:
    """Write a picture of a cube: true colour where it has red, green and blue, else its first band; say what it shows.

    Reads the smallest overview that fills the picture; the last date where `time` is None.
    """
    level = max((i for i, grid in enumerate(manifest.levels) if max(grid.shape) >= _PREVIEW_EDGE), default=0)
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level)
    names = {band.name for band in manifest.bands}
    bands = _TRUE_COLOUR if names.issuperset(_TRUE_COLOUR) else (manifest.bands[0].name,)
    selection = select(manifest, spec, bands=bands, time=time)
    dataset = to_dataset(manifest, selection, chunks=None)
    shown = "no date"
    if "time" in dataset.dims:
        dataset = dataset.isel(time=-1)
        shown = str(dataset["time"].values)[:10]
    step = max(1, max(selection.grid.shape) // _PREVIEW_EDGE)
    dataset = dataset.isel(y=slice(None, None, step), x=slice(None, None, step))
    if any(dataset[band].dtype.kind not in "iuf" for band in bands):
        raise SelectionError(f"no picture of {', '.join(bands)}: only numbers can be shown")
    write_png(path, stretch([dataset[band].values.astype("float32") for band in bands]))
    return f"{' '.join(bands)}, {shown}, level {level}"
