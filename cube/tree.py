"""A cube in all of its resolutions: `open_tree`, a group a level, as GeoZarr lays them out."""

from __future__ import annotations

from typing import Any

import xarray as xr

from cube import conventions
from cube.dataset import named_foreign, open_cube
from cube.errors import SelectionError
from cube.grid import Grid
from cube.manifest.open import open_spec
from cube.spec import CubeSpec


def open_tree(what: Any, bands: Any = None, **options: Any) -> xr.DataTree:
    """Open a cube lazily in all of its resolutions.

    Where the cube is read on a grid that the user chose, the levels are that grid at 1/2, 1/4, ... of its resolution,
    as many as the sources have overviews for.

    Args:
        what: As `open_cube` takes it, as are all below.
        bands: Names or aliases; all where None.
        **options: Of `open_cube`, but for `level`.

    Returns:
        Groups "0" (full resolution), "1" and so on, each a dataset as `open_cube` gives it; attributes of GeoZarr's
        conventions `multiscales`, `proj:` and `spatial:` on the groups and their arrays.

    Raises:
        SelectionError: As `open_cube`; or `level` is given.
        BuildError: As `open_cube`.
    """
    if "level" in options:
        raise TypeError("open_tree() opens every level: leave out level=, or use open_cube()")
    foreign = named_foreign(what)
    if foreign is not None:
        raise SelectionError(
            f"{foreign.url} is no archive of COGs: open_cube() opens it, and xarray.open_datatree() the groups of a "
            "Zarr store"
        )
    first = open_cube(what, bands, **options)
    datasets = {"0": first}
    spec: CubeSpec = first.encoding["cube"]
    manifest = open_spec(spec)
    for level in range(1, len(manifest.levels)):
        datasets[str(level)] = open_cube(manifest, bands, level=level, **options)
    grids = {name: _grid(dataset) for name, dataset in datasets.items()}
    root = xr.Dataset(attrs=dict(manifest.attributes) | conventions.multiscales_attributes(grids))
    groups = {f"/{name}": _with_conventions(dataset, grids[name]) for name, dataset in datasets.items()}
    return xr.DataTree.from_dict({"/": root, **groups})


def _grid(dataset: xr.Dataset) -> Grid:
    grid: Grid = dataset.cube.grid
    return grid


def _with_conventions(dataset: xr.Dataset, grid: Grid) -> xr.Dataset:
    said = conventions.geozarr_attributes(grid)
    found = dataset.assign_attrs(said)
    for variable in found.data_vars.values():
        variable.attrs.update(said)
    return found
