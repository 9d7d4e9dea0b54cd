"""One TIFF header as a value: levels, tile tables, codec, dtype, nodata, scale, CRS keys and transform."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from cube.tiff.gdaltags import parse_items, parse_nodata
from cube.tiff.ifd import ByteParts, Image, MissingBytesError, Tag, TiffFile, merge_ranges, unpack
from cube.tiff.outline import Outline, find_outline
from cube.tiff.tiles import Stored, TileTable, read_stored, tile_tables

type _Numbers = tuple[Any, ...]
type _Value = tuple[int, bytes]
"""TIFF's type of a tag, and the bytes of its value."""

_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
_VERTICAL = (4096, 4098, 4099)  # CRS, datum, units
_ELLIPSOID_HEIGHTS = range(5001, 5100)  # GeoTIFF's own codes, of which GDAL makes no vertical CRS
_PLACE_TAGS = (Tag.GEO_ASCII, Tag.GEO_KEYS, Tag.GEO_DOUBLES, Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX)
_NO_VALUE: _Value = (2, b"")
_SHORT = 3  # TIFF's type of 16 bits
_LONG = 2**14  # bytes of georeferencing
_ALPHA_TYPES = {"uint8", "uint16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeoKeys:
    """The three GeoTIFF tags that name a CRS, as the file has them."""

    directory: tuple[int, ...]
    doubles: tuple[float, ...] = ()
    ascii: bytes = b""

    def numbers(self) -> dict[int, float]:
        """Return the value of each key; NaN for texts, for keys given twice and for values that are not there."""
        found: dict[int, float] = {}
        for key, place, count, value in zip(*[iter(self.directory[4:])] * 4, strict=False):
            number = value if (place, count) == (0, 1) else math.nan
            if place == Tag.GEO_DOUBLES and value < len(self.doubles):
                number = self.doubles[value]
            found[key] = math.nan if key in found else number
        return found


@dataclass(slots=True, kw_only=True, eq=False)  # not frozen, which would double the time to make one
class Level:
    """One image of the file: full resolution, an overview, or the mask of either; nobody changes it."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    """TIFF's code."""
    predictor: int
    """1 none, 2 horizontal differences, 3 floating point."""
    strips: bool = False
    """True where tiles are strips: as wide as the image, the last one only as high as the rows that are left. Those of
    plain bytes that follow one another are cut into others of about 256 KiB."""
    tables: bytes | None = None
    """JPEG's, which stand in no tile."""
    bits: int = 0
    """1 for masks of one bit a pixel, else 0."""
    mask: Level | None = None
    """The image that says which pixels of this one are valid: those where it is not 0. Its sparse tiles are all 0."""
    offsets: NDArray[np.uint64]
    """Of the tiles in the file, (planes, tile rows, tile columns); (planes, 0, 0) where GDAL has to decode them."""
    lengths: NDArray[np.uint64]
    """Bytes of the tiles, same shape; 0 is a sparse tile."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Header:
    """What the header of one TIFF says."""

    dtype: np.dtype[Any]
    """Of the samples, native byte order."""
    byteorder: Literal["<", ">"]
    samples: int
    interleave: Literal["pixel", "band"]
    """As GDAL says it: one sample is "band"."""
    photometric: int
    levels: tuple[Level, ...]
    """Full resolution, then overviews from large to small."""
    transform: Affine | None
    """(column, row) to CRS; (0, 0) is the outer corner of the first pixel."""
    geokeys: GeoKeys | None
    crs_wkt: str | None = None
    """The CRS where GDAL, and not `geokeys`, says it."""
    nodata: float | None
    """An int for integer dtypes; None where there is none that the dtype can hold."""
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    """Physical value = stored value * scale + offset, by sample."""
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]
    alpha: int | None
    """Index of the alpha sample."""
    validity: Literal["mask", "alpha"] | None
    """What says which pixels are valid, by GDAL's rules: mask images, whatever the nodata; the last sample where it is
    not 0; or only nodata."""
    colormap: tuple[tuple[int, int, int, int], ...] | None
    """(red, green, blue, alpha), 0-255, by stored value."""
    metadata: dict[str, str]
    """GDAL's metadata items of the dataset, default domain."""
    needs_gdal: str | None
    """Why the pixels are read by GDAL, whose view of the file may be another one than this; None if it need not."""
    refusal: str | None
    """Why this cannot be a source at all; None if it can."""


def parse_header(href: str, parts: ByteParts) -> Header:
    """Return the header of the TIFF at `href`, of which `parts` are at hand.

    Raises:
        MissingBytesError: Add the ranges it names and call again. It names all that can be known by then.
        HeaderError: The file is no TIFF, truncated or absurd.
    """
    file = TiffFile(href, parts)
    outline = find_outline(file)
    if outline is None:
        raise MissingBytesError(merge_ranges(file.missing))
    main = outline.levels[0]
    said = {value.tag: (value.kind, bytes(file.read(main, value))) for value in outline.values}
    images = [image for image in (*outline.masks, *outline.levels) if image is not None]
    stored = [read_stored(file, image) for image in images]
    if file.missing:
        raise MissingBytesError(merge_ranges(file.missing))
    levels: dict[Image | None, Level] = {}
    owned = dict(zip(outline.levels, outline.masks, strict=True))
    for image, each, table in zip(images, stored, tile_tables(file, images, stored), strict=True):
        levels[image] = _level(image, each, table, levels.get(owned.get(image)))
    return _build(file, outline, said, tuple([levels[image] for image in outline.levels]))


def _level(image: Image, stored: Stored, table: TileTable, mask: Level | None) -> Level:
    return Level(
        width=image.width,
        height=image.height,
        tile_width=image.tile_width,
        tile_height=table.tile_height,
        compression=image.codec,
        predictor=image.predictor,
        strips=image.strips,
        tables=bytes(stored.tables) or None,
        bits=int(image.bits == 1),
        mask=mask,
        offsets=table.offsets,
        lengths=table.lengths,
    )


def _build(file: TiffFile, outline: Outline, said: Mapping[int, _Value], levels: tuple[Level, ...]) -> Header:
    main, order = outline.levels[0], file.layout.order
    dtype = _dtype(main.sample_type, main.bits)
    nodata = parse_nodata(said.get(Tag.GDAL_NODATA, _NO_VALUE)[1], dtype)
    items = parse_items(said.get(Tag.GDAL_METADATA, _NO_VALUE)[1], main.samples)
    place = _place(order, said)
    heights = place.heights if main.samples == 1 else None
    alphas = _alphas(main.samples, unpack(order, *said[Tag.EXTRA]) if Tag.EXTRA in said else (), items.alphas)
    validity: Literal["mask", "alpha"] | None = None
    if outline.masks[0] is not None:
        validity = "mask"
    elif nodata is None and main.samples in (2, 4) and main.samples - 1 in alphas and dtype.name in _ALPHA_TYPES:
        validity = "alpha"
    reasons = list(outline.reasons)
    if items.is_broken:
        reasons.append("GDAL_METADATA that is not plain XML")
    if validity != "mask" and "NODATA_VALUES" in items.metadata:
        reasons.append("NODATA_VALUES, of which all bands together make the mask")
    refusals = [reason for reason in (place.refusal, outline.refusal) if reason is not None]
    return Header(
        dtype=dtype,
        byteorder=order,
        samples=main.samples,
        interleave=main.interleave,
        photometric=main.photometric,
        levels=levels,
        transform=place.transform,
        geokeys=place.geokeys,
        nodata=nodata,
        scales=items.scales if heights is None else (heights[0],),
        offsets=items.offsets if heights is None else (heights[1],),
        descriptions=items.descriptions,
        units=items.units,
        alpha=min(alphas, default=None),
        validity=validity,
        colormap=_colormap(order, said[Tag.COLORMAP], main.bits, nodata) if Tag.COLORMAP in said else None,
        metadata=dict(items.metadata),
        needs_gdal="; ".join(reasons) or None,
        refusal="; ".join(refusals) or None,
    )


@functools.lru_cache(maxsize=256)
def _dtype(sample_type: str, bits: int) -> np.dtype[Any]:
    """Return the dtype of the samples, or one that holds them if GDAL has to read them."""
    kind = "u" if sample_type == "mixed" else sample_type[0]
    if sample_type[:2] == "ci":  # complex numbers of integers, which floats of twice the size hold
        bits *= 2
    sizes = {"c": (8, 16), "f": (2, 4, 8)}.get(kind, (1, 2, 4, 8))
    return np.dtype(f"{kind}{next((size for size in sizes if 8 * size >= bits), sizes[-1])}")


class _Place(NamedTuple):
    """Where an image lies."""

    geokeys: GeoKeys | None
    transform: Affine | None
    refusal: str | None
    heights: tuple[float, float] | None
    """(scale, offset) of the values where they are heights: GDAL keeps them as z of the georeferencing."""


def _place(order: Literal["<", ">"], said: Mapping[int, _Value]) -> _Place:
    values = tuple([said.get(tag, _NO_VALUE) for tag in _PLACE_TAGS])
    # Bands and dates share places; what is long is an attack on the cache.
    is_short = sum([len(data) for _, data in values]) < _LONG
    return (_find_place if is_short else _find_place.__wrapped__)(order, values)


@functools.lru_cache(maxsize=4096)
def _find_place(order: Literal["<", ">"], values: tuple[_Value, ...]) -> _Place:
    keys, doubles, scale, tie, matrix = (unpack(order, *value) for value in values[1:])
    geokeys = None
    if values[1][0] == _SHORT and len(keys) >= 4 and keys[0] == 1 and len(keys) >= 4 + 4 * keys[3]:  # as GDAL
        geokeys = GeoKeys(directory=keys[: 4 + 4 * keys[3]], doubles=doubles, ascii=values[0][1])
    numbers = {} if geokeys is None else geokeys.numbers()
    transform = _transform(scale, tie, matrix, is_point=numbers.get(_RASTER_TYPE) == _PIXEL_IS_POINT)
    refusal = None
    if transform is None:
        refusal = "ground control points instead of a transform" if len(tie) >= 6 else "no georeferencing"
    elif not (all(map(math.isfinite, transform[:6])) and transform.determinant):
        refusal = "a degenerate grid"
    is_vertical = not numbers.keys().isdisjoint(_VERTICAL) and numbers.get(_VERTICAL[0]) not in _ELLIPSOID_HEIGHTS
    heights = None
    if is_vertical and keys[:3] != (1, 1, 0) and len(scale) >= 3 and len(tie) >= 6 and (scale[2] or tie[2] or tie[5]):
        heights = scale[2], tie[5] - tie[2] * scale[2]
    return _Place(geokeys, transform, refusal, heights)


def _transform(scale: _Numbers, tie: _Numbers, matrix: _Numbers, *, is_point: bool) -> Affine | None:
    """Return what GDAL does: scale and first tiepoint, else the matrix; pixel-is-point moved to the corner."""
    if len(scale) >= 2 and scale[0] and scale[1]:
        if len(tie) < 6:
            return None
        b, d = 0.0, 0.0
        a, e = scale[0], -abs(scale[1])  # GDAL reads a negative scale as north-up, too
        c, f = tie[3] - tie[0] * a, tie[4] - tie[1] * e
    elif len(matrix) == 16:
        a, b, c, d, e, f = (matrix[i] for i in (0, 1, 3, 4, 5, 7))
    else:
        return None
    if is_point:
        return Affine(a, b, c - (a * 0.5 + b * 0.5), d, e, f - (d * 0.5 + e * 0.5))
    return Affine(a, b, c, d, e, f)


def _alphas(samples: int, extra: tuple[int, ...], said: Mapping[int, bool]) -> set[int]:
    """Return the samples that are alpha by ExtraSamples, or by GDAL's word where that differs."""
    alphas = {samples - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)}
    for sample, is_alpha in said.items():
        alphas = alphas | {sample} if is_alpha else alphas - {sample}
    return alphas


@functools.lru_cache(maxsize=64)
def _colormap(
    order: Literal["<", ">"], value: _Value, bits: int, nodata: float | None
) -> tuple[tuple[int, int, int, int], ...] | None:
    values = unpack(order, *value)
    if value[0] not in (1, _SHORT) or bits > 16 or len(values) != 3 << bits:
        return None
    table = np.array(values, np.int32).reshape(3, -1).T
    if table.max() >= 256:  # otherwise bytes were written, by mistake; GDAL takes them as meant, too
        table //= 257
    return tuple((r, g, b, 0 if index == nodata else 255) for index, (r, g, b) in enumerate(table.tolist()))
