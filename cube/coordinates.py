"""The coordinates of a part of a cube."""

from __future__ import annotations

import numpy as np
import xarray as xr
from xarray.core import indexing

from cube import conventions
from cube.lazy import LazyCentres
from cube.manifest.open import open_spec
from cube.selection import Selection


def coordinates(selection: Selection) -> dict[str, xr.Variable]:
    """Return time (where there is one), y and x of pixel centres (yc and xc by pixel, if rotated), `spatial_ref`."""
    grid = selection.grid
    of_y, of_x = conventions.axis_attributes(grid)
    found = {conventions.SPATIAL_REF: xr.Variable((), np.int64(0), conventions.crs_attributes(grid))}
    if grid.is_rotated:
        for name, axis, attributes in (conventions.X_CENTRE, 0, of_x), (conventions.Y_CENTRE, 1, of_y):
            data = indexing.LazilyIndexedArray(LazyCentres(grid, axis))
            found[name] = xr.Variable(("y", "x"), data, {k: v for k, v in attributes.items() if k != "axis"})
    else:
        # Of the whole cube, so that a window and the cube, joined by equality, share their coordinates to the last bit.
        spec, window = selection.spec, selection.window
        whole = open_spec(spec).grid_at(spec.level)
        ys, xs = whole.ys[window.top : window.bottom], whole.xs[window.left : window.right]
        found |= {"y": xr.Variable(("y",), ys, of_y), "x": xr.Variable(("x",), xs, of_x)}
    if selection.stamps is not None:
        stamps = selection.stamps.astype("datetime64[ns]")
        found["time"] = xr.Variable(("time",), stamps, conventions.TIME_ATTRIBUTES)
    return found
