"""A cube as an `xarray.Dataset`: `open_cube`, coordinates, CRS and CF decoding."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from cube import (
    accessor,  # noqa: F401  # registers `ds.cube`
    conventions,
)
from cube.archive.build import build
from cube.archive.inputs import require_arguments
from cube.catalog import CATALOG_FILE, find_entry, read_catalog
from cube.coordinates import coordinates
from cube.decoding import Decoding, find_decoding
from cube.errors import CatalogError, MissingExtraError, SelectionError
from cube.foreign.find import Foreign, find_foreign
from cube.io.stores import absolute, is_url, local_path, redact
from cube.lazy import LazyBand
from cube.manifest.open import POINTER, Manifest, open_manifest, open_spec
from cube.selection import Box, Selection, select, select_bands
from cube.spec import CubeSpec, Fuse, Groupby, Resampling
from cube.target import plan_placing


def open_cube(
    what: Any,
    bands: Sequence[str] | str | None = None,
    *,
    bbox: Box | None = None,
    lon: tuple[float, float] | None = None,
    lat: tuple[float, float] | None = None,
    time: str | tuple[str, str] | None = None,
    chunks: Mapping[str, Any] | str | None = None,
    level: int = 0,
    mask_and_scale: bool = True,
    crs: str | None = None,
    resolution: float | tuple[float, float] | None = None,
    geobox: Any = None,
    like: Any = None,
    geopolygon: Any = None,
    anchor: Any = None,
    resampling: Resampling | Mapping[str, Resampling] | None = None,
    groupby: Groupby | None = None,
    fuse: Fuse | None = None,
    patch_url: Callable[[str], str] | None = None,
    pattern: str | None = None,
    bands_as: str | None = None,
    harmonize: bool = True,
    fail_on_error: bool = True,
    fill_value: float | None = None,
    allow: Sequence[str] | str = (),
) -> xr.Dataset:
    """Open a cube lazily: no pixel is read until it is used.

    Args:
        what: A name in the `catalog.yaml` of the current folder, a manifest by path or URL, one or several COGs, or
            anything that `build` takes. A Zarr store (.zarr), Kerchunk references (.json, .parq) or an Icechunk
            repository (.icechunk) opens as xarray opens it, cut to `bands`, `bbox` and `time`.
        bands: Names or aliases (STAC asset keys); the variables are called as asked for. All bands where None.
        bbox: Longitude and latitude: (west, south, east, north).
        lon: (west, east), with `lat` the same as `bbox`.
        lat: (south, north).
        time: A date ("2024", "2024-06", "2024-06-01") or (first, last), both included.
        chunks: None reads lazily without Dask; "auto" (or {}) makes dask blocks of many tiles and all dates that fit a
            worker's memory (of thousands of dates, parts: what reduces over time then combines them); or lengths by
            dimension.
        level: 0 is full resolution, 1 the first overview, and so on.
        mask_and_scale: Whether to turn stored numbers into physical ones and no data into NaN (CF decoding).
        crs: What is opened is in this CRS: sources in another are warped as they are read. Of `build`, too: the CRS of
            files that name none.
        resolution: Size of a pixel in units of the CRS, or (y, x); read from the overview that fits. By it, `crs`,
            `bbox` and `anchor`, the grid is chosen as by `odc.stac.load`.
        geobox: The grid as odc-geo's value, instead of all those.
        like: A dataset or array whose grid it is, instead of all those.
        geopolygon: Whose bounding box is opened, instead of `bbox`: of shapely, geopandas, odc-geo, or GeoJSON.
        anchor: Where pixels of a `resolution` begin: "edge" (whole multiples of it), "center", or a fraction of one.
        resampling: "nearest", "bilinear", "cubic" or "average" for what does not lie on the grid, or one a band:
            {"scl": "nearest", "*": "cubic"}. Bands of classes or bits need "nearest". As the cube was placed (see
            `place`) where None, else "nearest".
        groupby: What one step in time is: "time" (equal times), "solar_day", or "id" (an item). As the cube was placed
            where None, else "time".
        fuse: Where several sources of a step give a pixel: the one that is "first" by time and item and has a value
            there, the "last", the "newest", that of the "least_cloudy" item; or the "mean" or "median" of all. As the
            cube was placed where None, else "first".
        patch_url: Applied to each href when it is fetched, to sign it; never stored.
        pattern: Of `build`, where `what` is no cube yet, as are all below.
        bands_as: See `build`.
        harmonize: See `build`.
        fail_on_error: See `build`; False also reads a source that is gone or damaged as no data, with a warning in the
            log. `ds.cube.compute()` lists such sources in the attribute `missing_sources`.
        fill_value: See `build`.
        allow: URLs and paths that references may point to, besides the folder that they lie in.

    Returns:
        A dataset with dims (time, y, x), or (y, x) where the layers have no time; a variable a band; pixel-centre
        coordinates; the CRS in `spatial_ref`.

    Raises:
        SelectionError: What was asked for is not in the cube or does not go together; or the sources lie on several
            grids, and nothing says which pixels are meant.
        BuildError: Files that do not form one cube.
        ReferencesError: References or a store that cannot be used, or that point to where they may not.
    """
    require_arguments(bands=bands, level=level, mask_and_scale=mask_and_scale)
    require_arguments(patch_url=patch_url, pattern=pattern, fill_value=fill_value)
    box = _box(bbox, lon, lat)
    foreign = named_foreign(what, allow=allow)
    if foreign is not None:
        from cube.foreign.open import open_foreign  # and with it zarr, which takes half a second

        grid = {"crs": crs, "resolution": resolution, "geobox": geobox, "like": like, "geopolygon": geopolygon}
        rules = {"anchor": anchor, "resampling": resampling, "groupby": groupby, "fuse": fuse, "level": level or None}
        sources = {"patch_url": patch_url, "pattern": pattern, "bands_as": bands_as, "fill_value": fill_value}
        _refuse_options(foreign, grid | rules | sources)
        return open_foreign(foreign, bands, bbox=box, time=time, chunks=chunks, mask_and_scale=mask_and_scale)
    manifest = find_manifest(
        what,
        bands=bands,
        patch_url=patch_url,
        pattern=pattern,
        bands_as=bands_as,
        crs=crs,
        harmonize=harmonize,
        fail_on_error=fail_on_error,
        fill_value=fill_value,
    )
    on = plan_placing(
        manifest,
        [band.name for band in select_bands(manifest, bands)],
        crs=crs,
        resolution=resolution,
        geobox=geobox,
        like=like,
        geopolygon=geopolygon,
        anchor=anchor,
        bbox=box,
        resampling=resampling,
        groupby=groupby,
        fuse=fuse,
    )
    spec = CubeSpec(
        manifest=manifest.url,
        version=manifest.version,
        level=level,
        errors="raise" if fail_on_error else "skip",
        on=None if on == open_manifest(manifest.url, manifest.version).on else on,
        patch_url=patch_url,
    )
    # A grid that was made for the box is the box; of the one that the cube is placed on, the box is a window.
    is_cut = on.grid is not None and (manifest.said is None or on.grid != manifest.said.grid)
    selection = select(open_spec(spec), spec, bands=bands, bbox=None if is_cut else box, time=time)
    return to_dataset(manifest, selection, chunks=chunks, mask_and_scale=mask_and_scale)


def find_manifest(what: Any, *, bands: Sequence[str] | str | None = None, **build_arguments: Any) -> Manifest:
    """Return the manifest that `what` names, building one in the cache folder where it names files or items."""
    if isinstance(what, Manifest):
        return what
    if isinstance(what, (str, Path)):
        text = str(what)
        url = _named_manifest(text)
        if url is not None:
            return open_manifest(url)
    names = [bands] if isinstance(bands, str) else bands
    return build(what, bands=names, **build_arguments)


def open_named(text: str) -> Manifest:
    """Return the manifest that a name in the catalogue, a path or a URL means.

    Raises:
        CatalogError: It means no cube.
    """
    url = _named_manifest(text)
    if url is None:
        raise CatalogError(
            f"{text} is no cube; give a name in {CATALOG_FILE}, or a manifest (NAME.cube) by path or URL"
        )
    return open_manifest(url)


def _named_manifest(text: str) -> str | None:
    """Return the manifest folder that a text names, or None where it names files."""
    if text.rstrip("/").endswith(".cube"):
        return absolute(text.rstrip("/"))
    # A bare name is looked for in the catalogue first: a folder is often called as the cube that was built of it.
    entry = find_entry(text) if Path(text).name == text else None
    if entry is None:
        path = local_path(text)
        if path is not None and (path / POINTER).exists():
            return absolute(text)
        if is_url(text) or (path is not None and path.exists()):
            return None
        _refuse_unknown(text)
        return None
    folder = Path.cwd().as_posix()
    url = entry.manifest_url(folder)
    if url is None and entry.foreign(folder) is not None:
        raise CatalogError(
            f"{text!r} in {CATALOG_FILE} is a Zarr store or references: open_cube({text!r}) and `cube serve` read it; "
            "this needs an archive of COGs"
        )
    if url is None:
        raise CatalogError(
            f"{text!r} in {CATALOG_FILE} is read by {entry.driver}, not a manifest; open it with "
            f"intake.open_catalog('{CATALOG_FILE}')[{text!r}].to_dask()"
        )
    return url


def named_foreign(what: Any, *, allow: Sequence[str] | str = ()) -> Foreign | None:
    """Return the Zarr store, references or Icechunk repository that `what` means, None where it is nothing of these.

    Args:
        what: Anything that `open_cube` takes.
        allow: URLs and paths that references may point to, besides the folder that they lie in.

    Raises:
        CatalogError: The catalogue cannot be read, or its entry is damaged.
        ReadError: A .json file cannot be read.
    """
    text = str(what)
    if not isinstance(what, (str, Path)) or text.rstrip("/").endswith(".cube"):
        return None
    more = (allow,) if isinstance(allow, str) else tuple(allow)
    entry = find_entry(text) if Path(text).name == text else None
    if entry is None:
        return find_foreign(text, allow=more)
    found = entry.foreign(Path.cwd().as_posix())
    return None if found is None else replace(found, allow=(*found.allow, *more))


def _refuse_options(foreign: Foreign, options: Mapping[str, Any]) -> None:
    given = [f"{name}=" for name, value in options.items() if value is not None]
    if given:
        raise SelectionError(
            f"{redact(foreign.url)} is no archive of COGs and opens as it is: leave out {', '.join(given)}; "
            "bands=, bbox=, time= and chunks= choose a part"
        )


def _refuse_unknown(text: str) -> None:
    """Raise for a text that is neither there nor a glob: a name that the catalogue lacks, most likely."""
    if glob.has_magic(text):
        return
    catalog = Path(CATALOG_FILE)
    names = ", ".join(read_catalog(catalog)) if catalog.is_file() else None
    found = f"{CATALOG_FILE} here has {names or 'no entry'}" if names is not None else f"no {CATALOG_FILE} is here"
    raise CatalogError(f"{text}: there is no such file or folder, and no cube of that name ({found})")


def _box(bbox: Box | None, lon: tuple[float, float] | None, lat: tuple[float, float] | None) -> Box | None:
    if lon is None and lat is None:
        return bbox
    if bbox is not None or lon is None or lat is None:
        raise SelectionError("give lon=(west, east) and lat=(south, north) together, or bbox= alone")
    return lon[0], lat[0], lon[1], lat[1]


def to_dataset(
    manifest: Manifest, selection: Selection, *, chunks: Mapping[str, Any] | str | None, mask_and_scale: bool = True
) -> xr.Dataset:
    """Return a selection as a dataset: lazy arrays where `chunks` is None, else dask arrays (see `open_cube`)."""
    decoded = _without_data(manifest, selection, mask_and_scale=mask_and_scale)
    decodings = [find_decoding(band, decoded[name].dtype) if mask_and_scale else None for name, band in selection.bands]
    if chunks is None:
        lazy = [LazyBand(selection, band, how) for (_, band), how in zip(selection.bands, decodings, strict=True)]
        data: list[Any] = [indexing.LazilyIndexedArray(each) for each in lazy]
    else:
        data = _dask_arrays(selection, chunks, decodings)
    for (name, _), each in zip(selection.bands, data, strict=True):
        variable = decoded.variables[name]
        decoded[name] = xr.Variable(variable.dims, each, variable.attrs, variable.encoding)
    # By this `ds.cube` finds the cube again; not an attribute, as those are written to files and say where things lie.
    decoded.encoding["cube"] = selection.spec
    decoded.attrs["values"] = (
        "physical: scale and offset applied, no data is NaN"
        if mask_and_scale
        else "as stored: see scale_factor, add_offset and _FillValue"
    )
    return decoded


def _without_data(manifest: Manifest, selection: Selection, *, mask_and_scale: bool) -> xr.Dataset:
    """Return the dataset as xarray decodes it, dtypes, attributes and encodings, with nothing behind its variables."""
    variables = {}
    for name, band in selection.bands:
        attributes = conventions.band_attributes(band)
        fill = conventions.fill_value(band)
        if fill is not None:
            attributes["_FillValue"] = np.dtype(band.dtype).type(fill)
        encoding = {
            # Without it, what is written again reads back with the CRS as a variable among the bands.
            "coordinates": conventions.SPATIAL_REF,
            "dtype": np.dtype(band.dtype),
        }
        nothing = np.broadcast_to(np.zeros((), band.dtype), selection.shape)
        variables[name] = xr.Variable(selection.dims, nothing, attributes, encoding)
    dataset = xr.Dataset(variables, coordinates(selection), dict(manifest.attributes))
    return xr.decode_cf(dataset, mask_and_scale=mask_and_scale, decode_times=False, decode_coords=False)


def _dask_arrays(
    selection: Selection,
    chunks: Mapping[str, Any] | str,
    decodings: Sequence[Decoding | None],
) -> list[Any]:
    try:
        from cube.engine.array import band_arrays
        from cube.engine.blocks import plan_blocks
    except ImportError:
        raise MissingExtraError("opening a cube with chunks", "dask") from None
    return list(band_arrays(selection, plan_blocks(selection, chunks), decodings).values())
