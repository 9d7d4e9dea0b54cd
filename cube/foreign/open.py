"""Open what others wrote: as a dataset, or as the group of arrays that it is."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import xarray as xr
import zarr

from cube.errors import ReadError, ReferencesError, SelectionError
from cube.foreign.find import Foreign
from cube.foreign.icechunk import open_icechunk
from cube.foreign.stores import FolderStore, ReferenceStore, document_version, references_document
from cube.grid import Grid
from cube.io.stores import join, redact
from cube.selection import Box, find_window

if TYPE_CHECKING:
    from zarr.abc.store import Store

_DOCUMENTS = ("zarr.json", ".zmetadata", ".zgroup")
_UNREADABLE = (KeyError, ValueError, TypeError, FileNotFoundError, NotImplementedError)
"""What zarr and xarray raise for metadata that are absent, damaged or of a codec that is not installed."""


def open_foreign(
    foreign: Foreign,
    bands: Sequence[str] | str | None = None,
    *,
    bbox: Box | None = None,
    time: str | tuple[str, str] | None = None,
    chunks: Mapping[str, Any] | str | None = None,
    mask_and_scale: bool = True,
) -> xr.Dataset:
    """Return what others wrote as xarray opens it, cut to what is asked for; reads no pixel.

    Args:
        foreign: What to open.
        bands: Names of variables; all where None.
        bbox: Longitude and latitude: (west, south, east, north).
        time: A date ("2024", "2024-06", "2024-06-01") or (first, last), both included.
        chunks: None reads lazily without Dask; "auto" makes dask blocks of the store's chunks.
        mask_and_scale: Whether to decode stored numbers as CF says.

    Raises:
        ReferencesError: It cannot be opened, or points to where it may not.
        SelectionError: It has no such variable, date or place.
        ReadError: It cannot be read.
    """
    group = open_group(foreign)
    try:
        dataset = xr.open_zarr(
            group.store,
            group=foreign.group,
            chunks=None if chunks is None else {} if isinstance(chunks, str) else dict(chunks),
            consolidated=group.metadata.consolidated_metadata is not None,
            mask_and_scale=mask_and_scale,
            decode_coords="all",
        )
    except _UNREADABLE as error:
        raise _unreadable(foreign, error) from error
    dataset = _named(dataset, foreign, bands)
    if time is not None:
        dataset = _at_times(dataset, foreign, time)
    return dataset if bbox is None else _in_box(dataset, foreign, bbox)


def open_group(foreign: Foreign) -> zarr.Group:
    """Return what others wrote as a group of arrays; blocks.

    Raises:
        ReferencesError: It cannot be opened, or points to where it may not.
        ReadError: It cannot be read.
    """
    store, _ = _open_store(foreign)
    try:
        group = zarr.open_group(store, path=foreign.group, mode="r")
        names = [name for name, _ in group.arrays()]
    except _UNREADABLE as error:
        raise _unreadable(foreign, error) from error
    if not names:
        groups = ", ".join(name for name, _ in group.groups()) or "none"
        raise ReferencesError(f"{redact(foreign.url)} has no arrays at its root; its groups are: {groups}")
    return group


def find_version(foreign: Foreign) -> str:
    """Return what tells one state of what others wrote from the next; blocks.

    Raises:
        ReferencesError: It cannot be opened.
        ReadError: It cannot be read.
    """
    if foreign.kind == "icechunk":
        return open_icechunk(foreign)[1]
    if foreign.kind == "references":
        return document_version(references_document(foreign.url))
    root = foreign.url if foreign.group is None else join(foreign.url, foreign.group)
    for name in _DOCUMENTS:
        try:
            return document_version(join(root, name))
        except ReadError as error:
            last = error
    raise last


@functools.cache
def _register_codecs() -> None:
    """Let zarr decode what TIFF's own codecs encoded, in version 3 too: version 2 finds them by entry points."""
    import imagecodecs.zarr

    imagecodecs.zarr.register_codecs({"delta", "floatpred", "lzw", "zlib", "lerc"}, verbose=False)


def _open_store(foreign: Foreign) -> tuple[Store, str | None]:
    _register_codecs()
    match foreign.kind:
        case "icechunk":
            return open_icechunk(foreign)
        case "references":
            store = ReferenceStore(foreign.url, allow=foreign.allow, protocol=foreign.protocol)
            return store, store.version
        case "zarr":
            return FolderStore(foreign.url), None


def _unreadable(foreign: Foreign, error: Exception) -> ReferencesError:
    codec = "codec" in str(error)
    hint = "; its codecs may need pip install 'cogcube[kerchunk]'" if codec else ""
    return ReferencesError(f"{redact(foreign.url)} cannot be opened as Zarr ({foreign.kind}): {error}{hint}")


def _named(dataset: xr.Dataset, foreign: Foreign, bands: Sequence[str] | str | None) -> xr.Dataset:
    if bands is None:
        return dataset
    names = [bands] if isinstance(bands, str) else list(bands)
    unknown = [name for name in names if name not in dataset.data_vars]
    if unknown or not names:
        raise SelectionError(
            f"bands={bands!r} were asked for; {redact(foreign.url)} has {', '.join(map(str, dataset.data_vars))}"
        )
    return dataset[names]


def _at_times(dataset: xr.Dataset, foreign: Foreign, time: str | tuple[str, str]) -> xr.Dataset:
    if "time" not in dataset.indexes:
        raise SelectionError(f"time={time!r} was asked for; {redact(foreign.url)} has no coordinate called time")
    first, last = (time, time) if isinstance(time, str) else time
    try:
        found = dataset.sel(time=slice(first, last))
    except (KeyError, ValueError, TypeError) as error:
        raise SelectionError(f"time={time!r}: {error}") from None
    if not found.sizes["time"]:
        index = dataset.indexes["time"]
        raise SelectionError(f"time={time!r} was asked for; {redact(foreign.url)} has {index[0]} to {index[-1]}")
    return found


def _in_box(dataset: xr.Dataset, foreign: Foreign, bbox: Box) -> xr.Dataset:
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import ODCExtension  # noqa: F401 - registers .odc

    box = dataset.odc.geobox
    if not isinstance(box, GeoBox) or box.crs is None:
        raise SelectionError(f"bbox={bbox!r} was asked for; {redact(foreign.url)} does not say where it lies (no CRS)")
    a, b, c, d, e, f, *_ = box.affine
    height, width = box.shape
    window = find_window(Grid(crs=str(box.crs), transform=(a, b, c, d, e, f), height=height, width=width), bbox)
    y, x = dataset.odc.spatial_dims
    return dataset.isel({y: slice(window.top, window.bottom), x: slice(window.left, window.right)})
