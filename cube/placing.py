"""Say once on which pixels and dates a cube opens: `place`, for cubes whose sources lie on several grids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cube.errors import SelectionError
from cube.io.stores import local_path
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.snapshot import update_manifest
from cube.selection import Box
from cube.spec import Fuse, Groupby, Resampling
from cube.target import plan_placing


def place(
    manifest: Manifest,
    *,
    crs: str | None = None,
    resolution: float | tuple[float, float] | None = None,
    bbox: Box | None = None,
    geopolygon: Any = None,
    anchor: Any = None,
    geobox: Any = None,
    like: Any = None,
    resampling: Resampling | Mapping[str, Resampling] | None = None,
    groupby: Groupby | None = None,
    fuse: Fuse | None = None,
) -> Manifest:
    """Write a new version of a cube that opens on a grid where nobody says otherwise, is served so, and so on.

    No pixel is touched; the old version stays readable.

    Args:
        manifest: The current version, on a local disk.
        crs: As `open_cube` takes it, as are all below. What is not given stays as it was.
        resolution: See `crs`.
        bbox: See `crs`.
        geopolygon: See `crs`.
        anchor: See `crs`.
        geobox: See `crs`.
        like: See `crs`.
        resampling: See `crs`.
        groupby: See `crs`.
        fuse: See `crs`.

    Returns:
        The new version.

    Raises:
        SelectionError: What is given does not go together, or makes no grid; the manifest is not local.
        ManifestError: The manifest cannot be written, or someone else has changed it meanwhile.
    """
    if local_path(manifest.url) is None:
        raise SelectionError(f"{manifest.url} is a URL: place the cube where it is on a disk, and copy it to the store")
    grid = {"crs": crs, "resolution": resolution, "anchor": anchor, "geobox": geobox, "like": like}
    bands = [band.name for band in manifest.bands]
    on = plan_placing(
        manifest,
        bands,
        **grid,
        bbox=bbox,
        geopolygon=geopolygon,
        resampling=resampling,
        groupby=groupby,
        fuse=fuse,
    )
    version = update_manifest(
        manifest,
        add=[],
        remove=[],
        bands=manifest.bands,
        grids=manifest.grids,
        attributes=manifest.attributes,
        on=on,
    )
    return open_manifest(manifest.url, version)
