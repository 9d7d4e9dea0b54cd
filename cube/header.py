"""One TIFF header as a value: levels, tile tables, codec, dtype, nodata, scale, CRS keys and transform."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree as ET
from xml.sax.saxutils import unescape

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from cube.ifd import MAX_TILE_BYTES, ByteParts, Image, MissingBytesError, Tag, TiffFile, merge_ranges, walk

_COVERED_CODECS = {1, 5, 8, 32946, 50000}  # none, LZW, deflate (two codes), zstd
_CODECS = {2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old JPEG", 7: "JPEG", 32773: "PackBits",
           34661: "JBIG", 34676: "SGI Log", 34677: "SGI Log 24", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
           50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}  # fmt: skip
_COVERED_PHOTOMETRICS = {0, 1, 2, 3}  # grey (either way up), RGB, palette: GDAL gives the stored values of these
_PHOTOMETRICS = {4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "CFA",
                 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}  # fmt: skip
_DTYPES = {"u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f32", "f64"}
_REDUCED, _PAGE, _MASK = 1, 2, 4  # bits of NewSubfileType
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
_VERTICAL_KEYS = (4096, 4098, 4099)  # CRS, datum, units
_ELLIPSOID_HEIGHTS = range(5001, 5100)  # GeoTIFF's own codes, of which GDAL makes no vertical CRS
_INTEGER = re.compile(r"\s*[+-]?\d{1,30}\s*", re.ASCII)
_NUMBER = re.compile(  # also as Windows prints what is none
    r"\s*[+-]?(?:(nan|1\.#qnan|1\.#ind)|(inf|infinity|1\.#inf)|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(?=\s|$)",
    re.ASCII | re.IGNORECASE,
)

_DATASET_TAGS = (Tag.COLORMAP, Tag.EXTRA, Tag.PIXEL_SCALE, Tag.TIEPOINTS, Tag.MATRIX, Tag.GEO_KEYS,
                 Tag.GEO_DOUBLES, Tag.GEO_ASCII, Tag.GDAL_METADATA, Tag.GDAL_NODATA)  # fmt: skip


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """One image of the file: full resolution or an overview."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    """TIFF's code."""
    predictor: int
    """1 none, 2 horizontal differences, 3 floating point."""
    offsets: NDArray[np.uint64]
    """Of the tiles in the file, (planes, tile rows, tile columns); an image in strips has no rows and columns here."""
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
    nodata: float | None
    """An int for integer dtypes; None where there is none that the dtype can hold."""
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    """Physical value = stored value * scale + offset, by sample."""
    descriptions: tuple[str | None, ...]
    units: tuple[str | None, ...]
    alpha: int | None
    """Index of the alpha sample."""
    has_mask: bool
    """True if an image inside the file says which pixels are valid."""
    colormap: tuple[tuple[int, int, int, int], ...] | None
    """(red, green, blue, alpha), 0-255, by stored value."""
    metadata: dict[str, str]
    """GDAL's metadata items of the dataset, default domain."""
    unsupported: str | None
    """Why the reader does not cover the pixels; None if it does."""


def parse_header(href: str, parts: ByteParts) -> Header:
    """Return the header of the TIFF at `href`, of which `parts` are at hand.

    Raises:
        MissingBytesError: Add the ranges it names and call again. It names all that can be known by then.
        HeaderError: The file is no TIFF, truncated or absurd.
        UnsupportedSourceError: The file has so many images that it is no COG.
    """
    file = TiffFile(href, parts)
    images = walk(file)
    levels = _choose_levels(images) if images else []
    for level in levels:
        level.load_level()
    for tag in _DATASET_TAGS if levels else ():
        levels[0].load(tag)
    if file.missing:
        raise MissingBytesError(merge_ranges(file.missing))
    return _build(images, levels)


def _choose_levels(images: list[Image]) -> list[Image]:
    """Return the main image and its overviews, large to small; GDAL also drops those of other bands."""
    main, *others = images
    (width, height), samples = main.size, main.samples
    reduced = [i for i in others if i.kind & _REDUCED and not i.kind & _MASK and i.samples == samples]
    smaller = [i for i in reduced if i.size != main.size and i.size[0] <= width and i.size[1] <= height]
    return [main, *sorted(smaller, key=lambda image: image.size, reverse=True)]


def _build(images: list[Image], levels: list[Image]) -> Header:
    main = levels[0]
    dtype = _dtype(main)
    nodata = _nodata(main.text(Tag.GDAL_NODATA), dtype)
    geokeys = _geokeys(main)
    transform = _transform(main, geokeys)
    has_mask = any(i.kind & _MASK and not i.kind & _REDUCED and i.size == main.size for i in images[1:])
    items, is_broken = _items(main.text(Tag.GDAL_METADATA))
    reasons = list(_pixel_reasons(levels)) + list(_grid_reasons(main, transform))
    pages = sum(image.kind in (0, _PAGE) for image in images)
    reasons += [f"{pages} images of full resolution"] * (pages > 1) + ["an internal mask"] * has_mask
    reasons += ["GDAL_METADATA that is not plain XML"] * is_broken

    def by_sample(role: str) -> list[str | None]:
        return [items.get((sample, role)) for sample in range(main.samples)]

    scales = [1.0 if text is None else _number(text) or 0.0 for text in by_sample("scale")]
    offsets = [0.0 if text is None else _number(text) or 0.0 for text in by_sample("offset")]
    if height := _height_scale(main, geokeys):
        scales, offsets = [height[0]], [height[1]]
    return Header(
        dtype=dtype,
        byteorder=main.file.order,
        samples=main.samples,
        interleave=main.interleave,
        photometric=main.photometric,
        levels=tuple(map(_level, levels)),
        transform=transform,
        geokeys=geokeys,
        nodata=nodata,
        scales=tuple(scales),
        offsets=tuple(offsets),
        descriptions=tuple(by_sample("description")),
        units=tuple(by_sample("unittype")),
        alpha=_alpha(main, items),
        has_mask=has_mask,
        colormap=_colormap(main, nodata),
        metadata={name: text for (sample, name), text in items.items() if sample == -1},
        unsupported="; ".join(reasons) or None,
    )


def _level(image: Image) -> Level:
    empty = np.empty(0, np.uint64)
    offsets, lengths = (
        image.values.get(tag, empty).astype(np.uint64).reshape(image.shape)
        for tag in (Tag.TILE_OFFSETS, Tag.TILE_LENGTHS)
    )
    lengths[offsets == 0] = 0
    if offsets.size:
        _check_tiles(image, offsets, lengths)
    return Level(
        width=image.size[0],
        height=image.size[1],
        tile_width=image.tile[0],
        tile_height=image.tile[1],
        compression=image.codec,
        predictor=image.predictor,
        offsets=offsets,
        lengths=lengths,
    )


def _check_tiles(image: Image, offsets: NDArray[np.uint64], lengths: NDArray[np.uint64]) -> None:
    size, longest = image.file.parts.size, int(lengths.max())
    outside = (lengths > size) | ((lengths > 0) & (offsets > size - np.minimum(lengths, size)))
    if outside.any():
        raise image.file.error(
            f"{image.name} has {np.count_nonzero(outside)} tiles past the end of the file ({size} bytes; truncated?)"
        )
    if longest > 4 * image.tile_bytes + 2**20:  # codecs expand by half at most
        raise image.file.error(
            f"{image.name} has a tile of {longest} bytes, which is absurd for {image.tile_bytes} decoded"
        )


def _dtype(image: Image) -> np.dtype[Any]:
    """Return the dtype of the samples, or one that holds them if it is not covered."""
    kind = "u" if image.sample_type == "mixed" else image.sample_type[0]
    bits = max(image.numbers(Tag.BITS), default=1)
    sizes = {"c": (8, 16), "f": (2, 4, 8)}.get(kind, (1, 2, 4, 8))
    return np.dtype(f"{kind}{next((size for size in sizes if 8 * size >= bits), sizes[-1])}")


def _pixel_reasons(levels: list[Image]) -> Iterator[str]:
    """Yield what the reader does not cover in the pixels: of the main image, else of the first other level."""
    main = levels[0]
    for number, image in enumerate(levels):
        reasons = list(_image_reasons(image))
        if (image.sample_type, image.interleave) != (main.sample_type, main.interleave):
            reasons.append(f"samples of another type ({image.sample_type}, {image.interleave}-interleaved)")
        yield from (f"{reason} at level {number}" if number else reason for reason in reasons)
        if reasons:
            return


def _image_reasons(image: Image) -> Iterator[str]:
    if not image.is_tiled:
        yield "strips instead of tiles"
    elif image.tile_bytes > MAX_TILE_BYTES:
        yield f"tiles of {image.tile_bytes} bytes"
    if image.codec not in _COVERED_CODECS:
        yield f"{_CODECS.get(image.codec, f'unknown ({image.codec})')} compression"
    elif image.predictor not in (1, 2, 3):
        yield f"predictor {image.predictor}"
    elif image.predictor == 3 and image.sample_type[0] != "f":
        yield "floating-point predictor on integers"
    if image.photometric not in _COVERED_PHOTOMETRICS:
        yield f"{_PHOTOMETRICS.get(image.photometric, f'unknown ({image.photometric})')} colours"
    if image.fill_order != 1:
        yield "reversed bit order"
    if image.sample_type not in _DTYPES:
        yield f"samples of type {image.sample_type}"


def _grid_reasons(main: Image, transform: Affine | None) -> Iterator[str]:
    if transform is None:
        has_points = len(main.numbers(Tag.TIEPOINTS)) >= 6
        yield "ground control points instead of a transform" if has_points else "no georeferencing"
    elif transform.b or transform.d:
        yield "a rotated or sheared grid"
    elif not (all(map(math.isfinite, transform[:6])) and transform.a > 0 and transform.e):
        yield "a degenerate or mirrored grid"


def _geokeys(main: Image) -> GeoKeys | None:
    values = main.values.get(Tag.GEO_KEYS, np.empty(0, "u2"))
    directory = values.tolist()
    if values.dtype.kind != "u" or values.itemsize != 2 or len(directory) < 4:
        return None
    size = 4 + 4 * directory[3]
    if directory[0] != 1 or len(directory) < size:  # GDAL ignores such keys
        return None
    return GeoKeys(
        directory=tuple(directory[:size]), doubles=tuple(main.numbers(Tag.GEO_DOUBLES)), ascii=main.raw(Tag.GEO_ASCII)
    )


def _transform(main: Image, geokeys: GeoKeys | None) -> Affine | None:
    """Return what GDAL does: scale and first tiepoint, else the matrix; pixel-is-point moved to the corner."""
    scale, tie, matrix = main.numbers(Tag.PIXEL_SCALE), main.numbers(Tag.TIEPOINTS), main.numbers(Tag.MATRIX)
    if len(scale) >= 2 and scale[0] and scale[1]:
        if len(tie) < 6:
            return None
        a, e = scale[0], -abs(scale[1])  # GDAL reads a negative scale as north-up, too
        transform = Affine(a, 0.0, tie[3] - tie[0] * a, 0.0, e, tie[4] - tie[1] * e)
    elif len(matrix) == 16:
        transform = Affine(matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    else:
        return None
    a, b, c, d, e, f = transform[:6]
    if geokeys is not None and geokeys.numbers().get(_RASTER_TYPE) == _PIXEL_IS_POINT:
        return Affine(a, b, c - (a * 0.5 + b * 0.5), d, e, f - (d * 0.5 + e * 0.5))
    return transform


def _height_scale(main: Image, geokeys: GeoKeys | None) -> tuple[float, float] | None:
    """Return (scale, offset) where GDAL keeps those of heights: as z of the georeferencing, if the CRS has one."""
    scale, tie = main.numbers(Tag.PIXEL_SCALE), main.numbers(Tag.TIEPOINTS)
    if geokeys is None or geokeys.directory[:3] == (1, 1, 0) or main.samples > 1:
        return None
    keys = geokeys.numbers()
    is_vertical = not keys.keys().isdisjoint(_VERTICAL_KEYS) and keys.get(_VERTICAL_KEYS[0]) not in _ELLIPSOID_HEIGHTS
    if not is_vertical or len(scale) < 3 or len(tie) < 6 or not (scale[2] or tie[2] or tie[5]):
        return None
    return scale[2], tie[5] - tie[2] * scale[2]


def _number(text: str) -> float | None:
    """Return the number that a text begins with, or None."""
    match = _NUMBER.match(text.replace(",", "."))
    if match is None:
        return None
    if match[1] or match[2]:
        return math.nan if match[1] else -math.inf if "-" in match[0] else math.inf
    return float(match[0])


def _nodata(text: str, dtype: np.dtype[Any]) -> float | None:
    value = int(text) if _INTEGER.fullmatch(text) else _number(text)
    if value is None or dtype.kind == "c":
        return None
    if dtype.kind != "f":
        if not math.isfinite(value) or value != int(value):
            return None
        limits = np.iinfo(dtype)
        return int(value) if limits.min <= value <= limits.max else None
    value = float(value)
    limit = float(np.finfo(dtype).max)
    if abs(abs(value) - limit) < 1e-10 * limit:  # texts of few digits that mean the largest number, as GDAL
        return math.copysign(limit, value)
    with np.errstate(over="ignore"):
        rounded = float(dtype.type(value))
    return rounded if math.isinf(value) or not math.isinf(rounded) else None


def _items(text: str) -> tuple[dict[tuple[int, str], str], bool]:
    """Return GDALMetadata by (sample or -1, role or name), and whether it is broken."""
    if not text:
        return {}, False
    if "<!DOCTYPE" in text.upper():  # entities could expand without bound; GDAL writes none
        return {}, True
    try:
        root = ET.fromstring(text)  # noqa: S314 - no DOCTYPE, so no entities
    except ET.ParseError:
        return {}, True
    found: dict[tuple[int, str], str] = {}
    for item in root.iterfind("Item") if root.tag == "GDALMetadata" else ():
        name, role, sample = item.get("name"), item.get("role", "").lower(), item.get("sample", "-1")
        if not name or not item.text or item.get("domain") or not _INTEGER.fullmatch(sample):
            continue
        # GDAL escapes values twice and so reads them twice.
        value = unescape(item.text.lstrip(), {"&quot;": '"', "&apos;": "'"})
        found[int(sample), role if int(sample) >= 0 and role else name] = value
    return found, False


def _alpha(main: Image, items: dict[tuple[int, str], str]) -> int | None:
    """Return the first sample that is alpha by ExtraSamples, or by GDAL's word where that differs."""
    extra = main.numbers(Tag.EXTRA)
    alphas = {main.samples - len(extra) + i for i, kind in enumerate(extra) if kind in (1, 2)}
    for (sample, role), text in items.items():
        if role == "colorinterp":
            alphas = alphas | {sample} if text.lower() == "alpha" else alphas - {sample}
    return min(alphas, default=None)


def _colormap(main: Image, nodata: float | None) -> tuple[tuple[int, int, int, int], ...] | None:
    values = main.values.get(Tag.COLORMAP)
    bits = max(main.numbers(Tag.BITS), default=1)
    if values is None or values.itemsize > 2 or bits > 16 or values.size != 3 * 2**bits:
        return None
    table = values.reshape(3, -1).T.astype(np.int32)
    if table.max() >= 256:  # otherwise bytes were written, by mistake; GDAL takes them as meant, too
        table //= 257
    return tuple((r, g, b, 0 if value == nodata else 255) for value, (r, g, b) in enumerate(table.tolist()))
