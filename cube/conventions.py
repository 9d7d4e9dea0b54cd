"""CF: a band's, a grid's and a time axis's attributes, the same for xarray, Zarr and Kerchunk."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from cube.grid import Grid
from cube.spec import Band

SPATIAL_REF = "spatial_ref"
X_CENTRE, Y_CENTRE = "xc", "yc"
"""Coordinates (y, x) of a rotated grid, as rioxarray calls them: no row has one y, no column one x."""
COORDINATES = frozenset({"time", "y", "x", X_CENTRE, Y_CENTRE, SPATIAL_REF})
"""Names that no band can have."""
EPOCH = "1970-01-01"
_UNITS = (("days", "D"), ("seconds", "s"), ("milliseconds", "ms"), ("microseconds", "us"))


def fill_value(band: Band) -> float | int | None:
    """Return the stored number that readers turn into "missing", or None where they must not.

    The one place where nodata becomes a fill value. A class band keeps its integers: "no data" is one of its classes,
    and masking would make floats of flags and bits.
    """
    if band.classes or np.dtype(band.dtype).kind == "c":  # xarray does not mask complex numbers
        return None
    if band.nodata is None and np.dtype(band.dtype).kind == "f":
        return float("nan")
    return band.nodata


def band_attributes(band: Band) -> dict[str, Any]:
    """Return a band's CF attributes, JSON values only, without `_FillValue` (see `fill_value`)."""
    attributes: dict[str, Any] = {"grid_mapping": SPATIAL_REF}
    if band.description:
        attributes["long_name"] = band.description
    if band.units:
        attributes["units"] = band.units
    if (band.scale, band.offset) != (1.0, 0.0):
        attributes |= {"scale_factor": band.scale, "add_offset": band.offset}
    if band.classes:
        attributes["flag_values"] = [value for value, _ in band.classes]
        attributes["flag_meanings"] = " ".join("_".join(meaning.split()) for _, meaning in band.classes)
    if band.colormap:
        # Of CF's flags, but for colours: what each value looks like.
        attributes["color_values"] = [value for value, *_ in band.colormap]
        attributes["colors"] = " ".join("#" + bytes(colour).hex() for _, *colour in band.colormap)
    return attributes


def axis_attributes(grid: Grid) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of the y and the x coordinate, which are pixel centres."""
    if _is_geographic(grid.crs):
        return (
            {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
            {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
        )
    units = _unit(grid.crs)
    return (
        {"standard_name": "projection_y_coordinate", "long_name": "y of the pixel centre", "units": units, "axis": "Y"},
        {"standard_name": "projection_x_coordinate", "long_name": "x of the pixel centre", "units": units, "axis": "X"},
    )


def crs_attributes(grid: Grid) -> dict[str, Any]:
    """Return the attributes of the grid-mapping variable: CF's, and what rioxarray and GDAL look for."""
    a, b, c, d, e, f = grid.transform
    return dict(_crs_attributes(grid.crs)) | {"GeoTransform": " ".join(repr(float(v)) for v in (c, a, b, f, d, e))}


_CONVENTIONS = {
    "multiscales": ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "Multiscale layout of zarr datasets"),
    "proj:": ("geo-proj", "f17cb550-5864-4468-aeb7-f3180cfb622f", "Coordinate reference system information"),
    "spatial:": ("spatial", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "Spatial coordinate information"),
}
"""Of Zarr, by name: repository, permanent id and what it is; together they are GeoZarr's."""


def geozarr_attributes(grid: Grid) -> dict[str, Any]:
    """Return what GeoZarr's conventions `proj:` and `spatial:` say of a grid, on a group and on its arrays alike.

    Attributes that are lists of mappings, which netCDF cannot hold: for what is written as Zarr.
    """
    code = grid.crs if ":" in grid.crs[:16] and '"' not in grid.crs else None
    return {
        "zarr_conventions": [_convention("proj:"), _convention("spatial:")],
        **({"proj:code": code} if code else {"proj:wkt2": _crs(grid.crs).to_wkt()}),
        "spatial:dimensions": ["y", "x"],
        "spatial:transform_type": "affine",
        "spatial:transform": list(grid.transform),
        "spatial:shape": list(grid.shape),
        "spatial:bbox": list(grid.bounds),
        "spatial:registration": "pixel",
    }


def multiscales_attributes(grids: Mapping[str, Grid]) -> dict[str, Any]:
    """Return what GeoZarr's convention `multiscales` says of groups that hold one image in several resolutions.

    Args:
        grids: Of the groups, by name, finest first; on the group that holds them, beside the finest's own attributes.
    """
    layout: list[dict[str, Any]] = []
    before: tuple[str, Grid] | None = None
    for name, grid in grids.items():
        entry: dict[str, Any] = {
            "asset": name,
            "spatial:shape": list(grid.shape),
            "spatial:transform": [*grid.transform],
        }
        if before is not None:
            down, across = (one / other for one, other in zip(before[1].shape, grid.shape, strict=True))
            entry |= {"derived_from": before[0], "transform": {"scale": [down, across], "translation": [0.0, 0.0]}}
        layout.append(entry)
        before = name, grid
    found = geozarr_attributes(next(iter(grids.values())))
    declared = [_convention("multiscales"), *found["zarr_conventions"]]
    return found | {"zarr_conventions": declared, "multiscales": {"layout": layout}}


def _convention(name: str) -> dict[str, str]:
    repository, uuid, description = _CONVENTIONS[name]
    return {
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{repository}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{repository}/blob/v1/README.md",
        "uuid": uuid,
        "name": name,
        "description": description,
    }


@functools.lru_cache(maxsize=256)
def _crs(text: str) -> Any:
    from pyproj import CRS

    return CRS.from_user_input(text)


@functools.lru_cache(maxsize=256)
def _crs_attributes(text: str) -> dict[str, Any]:
    crs = _crs(text)
    with warnings.catch_warnings(record=True) as lost:
        warnings.simplefilter("always")
        said = crs.to_cf()
    # What CF cannot say in full is left to WKT.
    attributes = {key: value for key, value in said.items() if value is not None and not lost}
    attributes["spatial_ref"] = attributes["crs_wkt"] = crs.to_wkt()
    return attributes


@functools.lru_cache(maxsize=256)
def gdal_crs(text: str) -> dict[str, Any]:
    """Return GDAL's `_CRS` attribute, by which its Zarr driver (and so R and QGIS) finds the CRS."""
    crs = _crs(text)
    attribute: dict[str, Any] = {"wkt": crs.to_wkt(), "projjson": crs.to_json_dict()}
    authority = crs.to_authority(min_confidence=100)
    if authority:
        attribute["url"] = f"http://www.opengis.net/def/crs/{authority[0]}/0/{authority[1]}"
    return attribute


def _is_geographic(text: str) -> bool:
    return bool(_crs(text).is_geographic)


def _unit(text: str) -> str:
    axes = _crs(text).axis_info
    name = axes[0].unit_name if axes else "metre"
    return {"metre": "m", "meter": "m"}.get(name, name)


def encode_times(times: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return times as int64 and their CF attributes, in the coarsest unit that loses nothing."""
    stamps = times.astype("datetime64[us]")
    name, code = next(
        (name, code)
        for name, code in _UNITS
        if (stamps.astype(f"datetime64[{code}]").astype(stamps.dtype) == stamps).all()
    )
    attributes = {"units": f"{name} since {EPOCH}", "calendar": "proleptic_gregorian", **TIME_ATTRIBUTES}
    return stamps.astype(f"datetime64[{code}]").astype("int64"), attributes


TIME_ATTRIBUTES = {"standard_name": "time", "long_name": "acquisition time (UTC)", "axis": "T"}
