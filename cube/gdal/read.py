"""The slow path: headers, pixels and masks by GDAL, of files that the project's own reader does not decode."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from typing import Any, Literal
from xml.etree import ElementTree as ET

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from cube.errors import HeaderError, ReadError, SourceChangedError, UnsupportedSourceError
from cube.gdal.handles import BlockCache, open_raster
from cube.grid import Window
from cube.io.stores import local_path
from cube.tiff.gdaltags import parse_nodata
from cube.tiff.header import Header, Level
from cube.tiff.ifd import MAX_IMAGES, MAX_TILE_BYTES

_GDAL_DECODES = 0
"""Stands where a level of our own has TIFF's code of its compression."""


def gdal_header(href: str, file: io.RawIOBase | BlockCache | None = None) -> Header:
    """Return what GDAL says of a raster; its levels have no tile tables, for GDAL alone reads the pixels.

    Args:
        href: What errors call it; its path where it is local.
        file: Its bytes where it is not.

    Raises:
        SourceNotFoundError: There is no such file.
        HeaderError: It is damaged, or no raster of a format that is read.
        UnsupportedSourceError: It is sound, but its samples differ in dtype or nodata, its blocks are too large, or
            GDAL would have to follow a name to another file.
        ReadError: Its bytes cannot be fetched, or end too early.
    """
    with open_raster(href, file, HeaderError, is_quiet=True) as opened:
        levels = [_level(href, opened.base)]
        for number in range(1, min(len(opened.base.overviews(1)) + 1, MAX_IMAGES)):
            with opened.at(number) as overview:
                level = _level(href, overview)
            sizes = (level.width, levels[-1].width), (level.height, levels[-1].height)
            # As far as they shrink, so that the number of a level is GDAL's, too.
            if sizes[0][0] > sizes[0][1] or sizes[1][0] > sizes[1][1] or all(a == b for a, b in sizes):
                break
            levels.append(level)
        return _header(href, opened.base, levels)


def count_mask_levels(href: str) -> int:
    """Return of how many levels of a local file the mask file beside it says what is valid; 0 where there is none."""
    path = local_path(f"{href}.msk")
    if path is None or not path.is_file():
        return 0
    with open_raster(path.as_posix(), None, HeaderError, is_quiet=True) as opened:
        return 1 + len(opened.base.overviews(1))


def read_with_gdal(
    href: str, file: io.RawIOBase | BlockCache | None = None, *, level: int, samples: Sequence[int], window: Window
) -> NDArray[Any]:
    """Return the stored numbers of some samples in a window of a level: (samples, rows, columns), native byte order.

    Raises:
        SourceNotFoundError: There is no such file.
        ReadError: They cannot be fetched or decoded, or lie outside of the file.
        UnsupportedSourceError: GDAL would have to follow a name to another file.
    """
    with open_raster(href, file, ReadError) as opened, opened.at(level) as dataset:
        place = _place(href, dataset, window)
        if not all(0 <= sample < dataset.count for sample in samples):
            raise ReadError(href, f"has {dataset.count} samples; {list(samples)} were asked for, counted from 0")
        pixels = np.empty((len(samples), *window.shape), _dtype(href, dataset))
        dataset.read([sample + 1 for sample in samples], out=pixels, window=place)
    return pixels


def read_valid_with_gdal(
    href: str, file: io.RawIOBase | BlockCache | None = None, *, level: int, window: Window, validity: str | None = None
) -> NDArray[np.bool_]:
    """Return which pixels of a window are valid by the file's mask or alpha: (rows, columns).

    `validity` is what must still say so; not asked where None.

    Raises:
        SourceNotFoundError: There is no such file.
        SourceChangedError: It has no such mask any more, or the file that holds it cannot be seen.
        ReadError: The mask cannot be fetched or decoded, or the window lies outside of the file.
        UnsupportedSourceError: GDAL would have to follow a name to another file.
    """
    with open_raster(href, file, ReadError) as opened, opened.at(level) as dataset:
        found = _validity(href, dataset)
        if validity is not None and found != validity:
            raise SourceChangedError.because(href, f"it had a validity {validity} and has {found or 'none'}")
        mask = dataset.read_masks(1, window=_place(href, dataset, window))
    return np.asarray(mask != 0)


def _place(href: str, dataset: Any, window: Window) -> Any:
    from rasterio.windows import Window as Place

    if not (0 <= window.top <= window.bottom <= dataset.height and 0 <= window.left <= window.right <= dataset.width):
        raise ReadError(href, f"has {dataset.height} rows and {dataset.width} columns here; {window} was asked for")
    height, width = window.shape
    return Place(window.left, window.top, width, height)


def _level(href: str, dataset: Any) -> Level:
    height, width = dataset.block_shapes[0]
    is_pixel = dataset.tags(ns="IMAGE_STRUCTURE").get("INTERLEAVE") == "PIXEL"
    nbytes = height * width * _dtype(href, dataset).itemsize * (dataset.count if is_pixel else 1)
    if nbytes > MAX_TILE_BYTES:
        raise UnsupportedSourceError(
            href, f"has blocks of {height} x {width} pixels, {nbytes} bytes; at most {MAX_TILE_BYTES} are decoded"
        )
    empty = np.empty((dataset.count, 0, 0), np.uint64)
    return Level(
        width=dataset.width,
        height=dataset.height,
        tile_width=width,
        tile_height=height,
        compression=_GDAL_DECODES,
        predictor=1,
        offsets=empty,
        lengths=empty,
        strips=False,
        tables=None,
        mask=None,
    )


def _header(href: str, dataset: Any, levels: list[Level]) -> Header:
    from rasterio.enums import ColorInterp

    dtype, colors = _dtype(href, dataset), dataset.colorinterp
    colormap = _colormap(dataset) if colors[0] == ColorInterp.palette else None
    transform = Affine(*dataset.transform[:6])
    refusal = None
    if transform == Affine.identity():
        refusal = "ground control points instead of a transform" if dataset.gcps[0] else "no georeferencing"
    elif not all(map(math.isfinite, transform[:6])) or transform.determinant == 0:
        refusal = "a degenerate grid"
    return Header(
        dtype=dtype,
        byteorder="<" if sys.byteorder == "little" else ">",
        samples=dataset.count,
        interleave="band",
        photometric=3 if colormap else 2 if colors[0] == ColorInterp.red else 1,
        levels=tuple(levels),
        transform=None if transform == Affine.identity() else transform,
        geokeys=None,
        crs_wkt=_crs(dataset),
        nodata=_nodata(href, dataset, dtype),
        scales=tuple(dataset.scales),
        offsets=tuple(dataset.offsets),
        descriptions=tuple(text or None for text in dataset.descriptions),
        units=tuple(text or None for text in dataset.units),
        alpha=colors.index(ColorInterp.alpha) if ColorInterp.alpha in colors else None,
        validity=_validity(href, dataset),
        colormap=colormap,
        metadata=dict(dataset.tags()),
        needs_gdal=f"{dataset.driver} format",
        refusal=refusal,
    )


def _dtype(href: str, dataset: Any) -> np.dtype[Any]:
    """Return the dtype that holds GDAL's exactly; complex integers have none of their own."""
    names = set(dataset.dtypes)
    if len(names) != 1 or None in names:
        raise UnsupportedSourceError(href, f"has samples of several types: {', '.join(map(str, dataset.dtypes))}")
    (name,) = names
    if name == "complex_int16":
        return np.dtype("c8")
    if name == "complex64" and any(kind == "CInt32" for kind, _ in _exact_bands(dataset)):
        return np.dtype("c16")
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _exact_bands(dataset: Any) -> list[tuple[str, str | None]]:
    """Return (type, nodata) of each sample in GDAL's words: rasterio has floats for both."""
    import rasterio.shutil
    from rasterio.io import MemoryFile

    with MemoryFile(ext=".vrt") as file:
        rasterio.shutil.copy(dataset, file.name, driver="VRT")
        root = ET.fromstring(file.read())  # noqa: S314 - GDAL has just written it
    return [(band.get("dataType", ""), band.findtext("NoDataValue")) for band in root.iterfind("VRTRasterBand")]


def _nodata(href: str, dataset: Any, dtype: np.dtype[Any]) -> float | None:
    texts = [None if value is None else repr(float(value)) for value in dataset.nodatavals]
    if dtype.kind in "iu" and dtype.itemsize == 8:  # rasterio's floats have 53 bits
        texts = [text for _, text in _exact_bands(dataset)]
    values = [parse_nodata((text or "").encode(), dtype) for text in texts]
    if len(set(map(repr, values))) > 1:
        raise UnsupportedSourceError(href, f"has samples with several nodata values: {', '.join(map(repr, values))}")
    return values[0]


def _validity(href: str, dataset: Any) -> Literal["mask", "alpha"] | None:
    from rasterio.enums import MaskFlags

    flags = dataset.mask_flag_enums[0]
    if not flags:
        raise UnsupportedSourceError(href, "has a mask of its own for each sample")
    if MaskFlags.per_dataset not in flags:
        return None
    return "alpha" if MaskFlags.alpha in flags else "mask"


def _colormap(dataset: Any) -> tuple[tuple[int, int, int, int], ...]:
    table = dataset.colormap(1)
    return tuple(tuple(table[value]) for value in sorted(table))


def _crs(dataset: Any) -> str | None:
    from rasterio.enums import WktVersion

    # WKT 2, since version 1 cannot say all methods.
    return str(dataset.crs.to_wkt(version=WktVersion.WKT2_2019)) if dataset.crs else None
