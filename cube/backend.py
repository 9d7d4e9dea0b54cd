"""The xarray engine "cube": `xr.open_dataset(what, engine="cube")`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr
from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    from cube.selection import Box


class CubeBackendEntrypoint(BackendEntrypoint):
    """Opens manifests, COGs and STAC items as cubes; `chunks=` gives dask arrays that read a band each."""

    description = "Open COG archives as cubes"
    url = "https://github.com/cogcube/cogcube"
    supports_groups = True

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        mask_and_scale: bool = True,
        bands: Sequence[str] | str | None = None,
        bbox: Box | None = None,
        time: str | tuple[str, str] | None = None,
        level: int = 0,
        crs: str | None = None,
        resolution: float | tuple[float, float] | None = None,
        geobox: Any = None,
        like: Any = None,
        geopolygon: Any = None,
        anchor: Any = None,
        resampling: Any = None,
        groupby: Any = None,
        fuse: Any = None,
        blocks: Mapping[str, Any] | str | None = None,
        patch_url: Callable[[str], str] | None = None,
        pattern: str | None = None,
        bands_as: str | None = None,
        harmonize: bool = True,
        fail_on_error: bool = True,
        fill_value: float | None = None,
        allow: Sequence[str] | str = (),
    ) -> xr.Dataset:
        """Return the cube as `cube.open_cube` does.

        Args:
            filename_or_obj: Anything that `open_cube` takes.
            drop_variables: Bands to leave out.
            mask_and_scale: As in `open_cube`.
            bands: As in `open_cube`.
            bbox: As in `open_cube`.
            time: As in `open_cube`.
            level: As in `open_cube`.
            crs: As in `open_cube`.
            resolution: As in `open_cube`.
            geobox: As in `open_cube`.
            like: As in `open_cube`.
            geopolygon: As in `open_cube`.
            anchor: As in `open_cube`.
            resampling: As in `open_cube`.
            groupby: As in `open_cube`.
            fuse: As in `open_cube`.
            blocks: As `open_cube`'s chunks: dask blocks in which all bands are read together; pass `cache=False` with
                it, or xarray loads a whole variable when a part of it is first used.
            patch_url: As in `open_cube`.
            pattern: As in `open_cube`.
            bands_as: As in `open_cube`.
            harmonize: As in `open_cube`.
            fail_on_error: As in `open_cube`.
            fill_value: As in `open_cube`.
            allow: As in `open_cube`.
        """
        # Here and not above: xarray imports every engine for each open_dataset, whoever's file it is.
        from cube.dataset import open_cube

        dataset = open_cube(
            filename_or_obj,
            bands,
            bbox=bbox,
            time=time,
            level=level,
            crs=crs,
            resolution=resolution,
            geobox=geobox,
            like=like,
            geopolygon=geopolygon,
            anchor=anchor,
            resampling=resampling,
            groupby=groupby,
            fuse=fuse,
            chunks=blocks,
            mask_and_scale=bool(mask_and_scale),
            patch_url=patch_url,
            pattern=pattern,
            bands_as=bands_as,
            harmonize=harmonize,
            fail_on_error=fail_on_error,
            fill_value=fill_value,
            allow=allow,
        )
        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        return dataset.drop_vars(dropped, errors="ignore")

    def open_datatree(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> xr.DataTree:
        """Return the cube in all of its resolutions, as `cube.open_tree` does; arguments as of `open_dataset`."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables, **options)
        )

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None, **options: Any
    ) -> dict[str, xr.Dataset]:
        """Return the groups of `open_datatree` by path."""
        from cube.tree import open_tree

        dropped = [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        chunks = options.pop("blocks", None)
        tree = open_tree(filename_or_obj, options.pop("bands", None), chunks=chunks, **options)
        return {node.path: node.to_dataset().drop_vars(dropped, errors="ignore") for node in tree.subtree}

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether xarray may choose this engine by itself: for manifests only, never for other TIFF readers'."""
        return isinstance(filename_or_obj, str) and filename_or_obj.rstrip("/").endswith(".cube")
