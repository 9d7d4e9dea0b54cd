"""The grid that a user asks for, in the terms of `odc.stac.load`: crs, resolution, bbox, geopolygon, like, geobox."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAliasType, get_args

import numpy as np

from cube.crs import crs_from_text
from cube.errors import SelectionError
from cube.grid import Grid, brief_crs
from cube.locate import transform_points
from cube.manifest.open import Manifest
from cube.selection import Box, parse_box
from cube.spec import Band, Fuse, Groupby, Placing, Resampling

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import Geometry

_LONLAT = "EPSG:4326"
_EDGE_POINTS = 21
"""Of a source: its straight edges are curves in another CRS."""
_CLASSES = re.compile(r"scl|fmask|bqa|qa|qa60|(.+_)?qa_(pixel|radsat|aerosol)", re.IGNORECASE)
"""Bands of Sentinel-2, Landsat and HLS that hold classes or bits, where no catalogue says so."""
_MOST_PIXELS = 1 << 40
_TOUCH_PX = 1e-6
"""Bounds that reach less far into a pixel do not touch it: that is rounding."""


def plan_placing(
    manifest: Manifest,
    bands: Sequence[str],
    *,
    resampling: Resampling | Mapping[str, Resampling] | None = None,
    groupby: Groupby | None = None,
    fuse: Fuse | None = None,
    **grid: Any,
) -> Placing:
    """Return on which pixels and dates a cube is read: as it is placed, but for what is given.

    Args:
        manifest: The cube.
        bands: Names of bands.
        resampling: See `plan_resampling`.
        groupby: See `Placing`.
        fuse: See `Placing`.
        **grid: Arguments of `find_target`.

    Raises:
        SelectionError: What is asked for does not go together; or the sources of the bands lie on several grids, and
            nothing says which pixels are meant.
    """
    said = manifest.said or Placing(lattice=None)
    target = find_target(manifest, bands, **grid) or said.grid
    lattice = None
    if target is None:
        lattice = said.lattice if said.lattice is not None else manifest.lattice_of(bands)
    steps = said.groupby if groupby is None else require_choice("groupby", groupby, Groupby)
    return Placing(
        grid=target,
        lattice=lattice,
        groupby=steps,
        longitude=find_longitude(manifest, target, lattice) if steps == "solar_day" else 0.0,
        fuse=said.fuse if fuse is None else _require_fuse(manifest, bands, fuse),
        resampling=said.resampling if resampling is None else plan_resampling(manifest, bands, resampling),
    )


def find_target(
    manifest: Manifest,
    bands: Sequence[str],
    *,
    crs: str | None = None,
    resolution: float | tuple[float, float] | None = None,
    anchor: Any = None,
    geobox: Any = None,
    like: Any = None,
    bbox: Box | None = None,
    geopolygon: Any = None,
) -> Grid | None:
    """Return the grid to read a cube on; None where its own will do.

    Args:
        manifest: The cube.
        bands: Names of bands: their sources count.
        crs: Of the grid; that of most sources where None.
        resolution: Size of a pixel in units of the CRS, or (y, x); the finest of the sources' where None and the CRS
            is theirs.
        anchor: Where pixels begin, as odc-geo has it: "edge" (multiples of the size), "center", or a fraction.
        geobox: The grid itself, as odc-geo's value.
        like: Something that has a grid by odc-geo or rioxarray: a dataset, an array.
        bbox: Longitude and latitude: (west, south, east, north). All sources where None.
        geopolygon: A geometry whose box is meant, in longitude and latitude where it has no CRS.

    Raises:
        SelectionError: What is asked for does not go together, or is no grid.
    """
    given = {"crs": crs, "resolution": resolution, "anchor": anchor, "bbox": bbox, "geopolygon": geopolygon}
    for name, value in (("geobox", geobox), ("like", like)):
        if value is not None:
            others = {**given, "geobox": geobox, "like": like}
            more = [key for key, each in others.items() if each is not None and key != name]
            if more:
                named = ", ".join("bbox= (lon=, lat=)" if key == "bbox" else f"{key}=" for key in more)
                raise SelectionError(f"{name}= is a whole grid: leave out {named}")
            return _from_geobox(manifest, _geobox_of(value, name))
    if bbox is not None and geopolygon is not None:
        raise SelectionError("give bbox= or geopolygon=, not both")
    if crs is None and resolution is None and anchor is None and geopolygon is None:
        return None
    return _plan_grid(manifest, bands, given)


def _plan_grid(manifest: Manifest, bands: Sequence[str], given: Mapping[str, Any]) -> Grid | None:
    from odc.geo.geobox import GeoBox
    from odc.geo.geom import BoundingBox

    counts = manifest.lattices(bands)
    most = manifest.grids[max(counts, key=lambda i: counts[i])].full
    crs = most.crs if given["crs"] is None else _crs_like(manifest, given["crs"])
    own = [manifest.grids[i].full for i in counts if manifest.grids[i].full.crs == crs]
    is_own = len(counts) == 1 and own and given["resolution"] is None and given["anchor"] is None
    if is_own and given["geopolygon"] is None:
        return None  # a window of its own grid, which needs no other
    if given["resolution"] is None and not own:
        raise SelectionError(
            f"crs={given['crs']!r}: no source is in it, so say how large pixels are (resolution=, in its units)"
        )
    bounds = _bounds(manifest, bands, crs, given)
    finest = min(own, key=lambda grid: abs(grid.transform[0]), default=None)
    if given["resolution"] is None and given["anchor"] is None and finest is not None:
        return _from_geobox(manifest, _window_of(finest, bounds))
    size = given["resolution"]
    if size is None and finest is not None:
        size = (finest.transform[4], finest.transform[0])
    resolution, anchor = _resolution(size), _anchor(given["anchor"])
    try:
        box = GeoBox.from_bbox(BoundingBox(*bounds, crs=crs), resolution=resolution, anchor=anchor)
    except (ValueError, TypeError, RuntimeError, AssertionError, OverflowError) as error:
        raise SelectionError(f"these arguments make no grid: {error}") from None
    return _from_geobox(manifest, box)


def _window_of(grid: Grid, bounds: Box) -> GeoBox:
    """Return all pixels of a grid's lattice that bounds in its CRS touch, also beyond the grid itself."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    left, bottom, right, top = bounds
    columns, rows = grid.to_pixels(np.array([left, left, right, right]), np.array([bottom, top, bottom, top]))
    first_column, first_row = (int(np.floor(each.min() + _TOUCH_PX)) for each in (columns, rows))
    width, height = (
        max(1, int(np.ceil(each.max() - _TOUCH_PX)) - first)
        for each, first in ((columns, first_column), (rows, first_row))
    )
    return GeoBox((height, width), Affine(*grid.transform) * Affine.translation(first_column, first_row), grid.crs)


def _bounds(manifest: Manifest, bands: Sequence[str], crs: str, given: Mapping[str, Any]) -> Box:
    """Return the (left, bottom, right, top) in a CRS that the grid has to cover."""
    if given["geopolygon"] is not None:
        import shapely

        geometry = geometry_of(given["geopolygon"])
        own, points = str(geometry.crs), shapely.get_coordinates(geometry.geom)
        if not len(points):
            raise SelectionError("geopolygon= is empty: it has no place")
    elif given["bbox"] is not None:
        west, south, east, north = parse_box(given["bbox"])
        if not (-90 <= south <= north <= 90):
            raise SelectionError(f"bbox={given['bbox']!r}: give (west, south, east, north) in degrees")
        east += 360 if east < west else 0
        own, points = _LONLAT, np.array([(west, south), (east, south), (east, north), (west, north)])
    else:
        return _of_sources(manifest, bands, crs)
    # Its corners alone, as odc-geo does it: the grids are the same.
    return _around(*transform_points(own, crs, points[:, 0], points[:, 1]), crs)


def _of_sources(manifest: Manifest, bands: Sequence[str], crs: str) -> Box:
    """Return the bounds of all sources of some bands in a CRS."""
    corners = []
    along = np.linspace(0, 1, _EDGE_POINTS)
    for i, boxes in manifest.boxes(bands).items():
        grid = manifest.grids[i].full
        top, bottom, left, right = (each[:, None] for each in boxes.T)
        across, down = left + along * (right - left), top + along * (bottom - top)
        columns = np.concatenate(
            [across, across, np.broadcast_to(left, down.shape), np.broadcast_to(right, down.shape)]
        )
        rows = np.concatenate([np.broadcast_to(top, across.shape), np.broadcast_to(bottom, across.shape), down, down])
        corners.append(transform_points(grid.crs, crs, *grid.corners(rows.ravel(), columns.ravel())))
    xs, ys = (np.concatenate(each) for each in zip(*corners, strict=True))
    return _around(xs, ys, crs)


def _around(xs: np.ndarray, ys: np.ndarray, crs: str) -> Box:
    finite = np.isfinite(xs) & np.isfinite(ys)
    if not finite.any():
        raise SelectionError(f"what is asked for has no place in {brief_crs(crs)}")
    xs, ys = xs[finite], ys[finite]
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def plan_resampling(
    manifest: Manifest, bands: Sequence[str], how: Resampling | Mapping[str, Resampling]
) -> tuple[tuple[str, Resampling], ...]:
    """Return how each band is resampled that is not resampled by nearest.

    Args:
        manifest: The cube.
        bands: Names of its bands.
        how: For all, or by name or alias of the band; "*" stands for those that are not named.

    Raises:
        SelectionError: There is no such way, or a band whose numbers cannot be mixed.
    """
    if isinstance(how, Mapping):
        by_name = {manifest.band(name).name: each for name, each in how.items() if name != "*"}
        given = {name: by_name.get(name, how.get("*", "nearest")) for name in bands}
    else:
        given = dict.fromkeys(bands, how)
    chosen = {name: require_choice("resampling", each, Resampling) for name, each in given.items()}
    for name, each in chosen.items():
        what = _without_mean(manifest.band(name))
        if each != "nearest" and what:
            raise SelectionError(
                f"resampling={each!r}: band {name!r} holds {what}, which have no mean; give "
                f"resampling={{{name!r}: 'nearest', '*': {each!r}}}"
            )
    return tuple((name, each) for name, each in chosen.items() if each != "nearest")


def _require_fuse(manifest: Manifest, bands: Sequence[str], fuse: Fuse) -> Fuse:
    require_choice("fuse", fuse, Fuse)
    for name in bands:
        what = _without_mean(manifest.band(name))
        if fuse in ("mean", "median") and what:
            raise SelectionError(
                f"fuse={fuse!r}: band {name!r} holds {what}, which have no {fuse}; open it by itself with another rule"
            )
    return fuse


def _without_mean(band: Band) -> str | None:
    """Return what a band holds whose numbers cannot be mixed; None of another."""
    kind = np.dtype(band.dtype).kind
    if band.classes or (kind in "iu" and _CLASSES.fullmatch(band.name)):
        return "classes or bits"
    return f"{band.dtype} numbers" if kind in "cb" else None


def require_choice[T](name: str, value: T, choices: TypeAliasType) -> T:
    """Return a value that is one of a literal type's.

    Raises:
        SelectionError: It is not.
    """
    known = get_args(choices.__value__)
    if value not in known:
        raise SelectionError(f"{name}={value!r} was asked for; there are {', '.join(known)}")
    return value


def find_longitude(manifest: Manifest, grid: Grid | None, lattice: int | None) -> float:
    """Return where days are counted, degrees east: at the middle of the grid, as in odc-stac.

    Raises:
        SelectionError: The grid has no place on Earth.
    """
    grid = grid or manifest.grids[lattice or 0].full
    middle = grid.corners(np.array([grid.height / 2]), np.array([grid.width / 2]))
    (longitude,), _ = transform_points(grid.crs, _LONLAT, *middle)
    if not np.isfinite(longitude):
        raise SelectionError(f"groupby='solar_day': {brief_crs(grid.crs)} has no place on Earth; use groupby='time'")
    return float(longitude)


def geometry_of(what: Any) -> Geometry:
    """Return a geometry as odc-geo's value: of odc-geo, shapely, geopandas or GeoJSON.

    Raises:
        SelectionError: It is none of those.
    """
    from odc.geo.geom import Geometry

    if isinstance(what, Geometry):
        return what
    if isinstance(what, Mapping):
        if what.get("type") == "FeatureCollection":
            import shapely

            parts = [shapely.geometry.shape(each["geometry"]) for each in what.get("features", ())]
            return Geometry(shapely.union_all(parts), _LONLAT)
        try:
            return Geometry(what.get("geometry", what), _LONLAT)
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise SelectionError(f"geopolygon= is no GeoJSON geometry: {str(error) or what.get('type')}") from None
    if hasattr(what, "union_all") and hasattr(what, "crs"):  # geopandas
        return Geometry(what.union_all(), str(what.crs or _LONLAT))
    if hasattr(what, "geom_type"):
        return Geometry(what, _LONLAT)
    if hasattr(what, "__geo_interface__"):
        return geometry_of(what.__geo_interface__)
    raise SelectionError(
        f"geopolygon={type(what).__name__}: give a geometry of shapely, geopandas or odc-geo, or GeoJSON"
    )


def _geobox_of(what: Any, name: str) -> GeoBox:
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import ODCExtension  # noqa: F401 - registers .odc

    found = what if isinstance(what, GeoBox) else getattr(getattr(what, "odc", None), "geobox", None)
    if not isinstance(found, GeoBox) or found.crs is None:
        raise SelectionError(
            f"{name}={type(what).__name__}: it has no grid with a CRS; give an odc.geo GeoBox, or data"
        )
    return found


def _from_geobox(manifest: Manifest, box: GeoBox) -> Grid:
    a, b, c, d, e, f, *_ = box.affine
    height, width = box.shape
    if not (0 < height * width < _MOST_PIXELS) or not (a * e - b * d):
        raise SelectionError(f"a grid of {height} x {width} pixels of {a:g} x {e:g} cannot be read")
    crs = _crs_like(manifest, str(box.crs))
    return Grid(crs=crs, transform=(a, b, c, d, e, f), width=width, height=height)


def _crs_like(manifest: Manifest, text: Any) -> str:
    """Return a CRS in the words of the sources, where they are in it: so that both are seen to be one."""
    asked = crs_from_text(text if isinstance(text, str) else str(text))
    if asked is None:
        raise SelectionError(f"crs={text!r} is no coordinate reference system; give EPSG:... or WKT")
    for levels in manifest.grids:
        own = crs_from_text(levels.full.crs)
        if own is not None and asked.equals(own, ignore_axis_order=True):
            return levels.full.crs
    authority = asked.to_authority(min_confidence=100)
    return ":".join(authority) if authority else str(asked.to_wkt())


def _resolution(size: Any) -> Any:
    from odc.geo import XY, resxy_, resyx_

    if isinstance(size, XY):
        return size
    is_pair = isinstance(size, (tuple, list)) and len(size) == 2
    try:
        y, x = (float(each) for each in size) if is_pair else (-float(size), float(size))
    except (TypeError, ValueError):
        raise SelectionError(f"resolution={size!r}: give the size of a pixel, or (y, x)") from None
    if not (is_pair or x > 0) or not (x and y and math.isfinite(x) and math.isfinite(y)):
        raise SelectionError(f"resolution={size!r}: give the size of a pixel, above 0, or (y, x)")
    return resyx_(y, x) if is_pair else resxy_(x, y)


def _anchor(anchor: Any) -> Any:
    known = ("edge", "center", "floating")
    if isinstance(anchor, str) and anchor not in known:
        raise SelectionError(f"anchor={anchor!r}: give one of {', '.join(known)}, or a fraction of a pixel")
    return "edge" if anchor is None else anchor
