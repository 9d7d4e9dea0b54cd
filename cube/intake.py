"""The intake driver of cubes: `intake.open_catalog("catalog.yaml")[name].to_dask()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cube.errors import CatalogError, MissingExtraError

try:
    from intake.source.base import DataSource, Schema
except ImportError as error:
    raise MissingExtraError("the intake driver", "catalog") from error

if TYPE_CHECKING:
    import xarray as xr


class CubeSource(DataSource):  # type: ignore[misc]  # intake has no types
    """A cube as a data source of an intake catalogue."""

    name = "cube"
    container = "xarray"
    version = "1"
    partition_access = False

    def __init__(self, urlpath: str, *, metadata: dict[str, Any] | None = None, **options: Any) -> None:
        """Remember what to open; nothing is read.

        Args:
            urlpath: A manifest by path or URL, or anything else that `cube.open_cube` takes.
            metadata: The entry's, from the catalogue.
            options: Arguments of `cube.open_cube`: bands, bbox, chunks and so on.
        """
        super().__init__(metadata=metadata)
        self.urlpath = urlpath
        self.options = options

    def to_dask(self) -> xr.Dataset:
        """The cube as dask arrays, in the entry's chunks or else in blocks that cube chooses."""
        return self._open(self.options.get("chunks") or "auto")

    def read(self) -> xr.Dataset:
        """The whole cube, in memory."""
        return self._open(None).load()

    read_chunked = to_dask

    def _open(self, chunks: Any) -> xr.Dataset:
        from cube.dataset import open_cube
        from cube.io.stores import local_path, redact

        folder = str((self.metadata or {}).get("catalog_dir") or "")
        if folder and local_path(folder) is None and local_path(str(self.urlpath)) is not None:
            raise CatalogError(
                f"the catalogue in {redact(folder)} names {self.urlpath}, a file of this machine: a catalogue that "
                "comes over a network may not"
            )
        return open_cube(self.urlpath, **{**self.options, "chunks": chunks})

    def _get_schema(self) -> Schema:
        dataset = self._open(None)
        described = {"dims": dict(dataset.sizes), "data_vars": list(dataset.data_vars), "coords": list(dataset.coords)}
        return Schema(dtype=None, shape=None, npartitions=1, extra_metadata=described)

    def _get_partition(self, _i: int) -> xr.Dataset:
        return self.read()

    def _close(self) -> None:
        self._schema = None
