"""Which bytes of which file each chunk of a cube is, where static references can say the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cube.conventions import SPATIAL_REF
from cube.errors import MissingExtraError, ReferencesError, SelectionError
from cube.grid import Grid, Window
from cube.io.stores import local_path
from cube.manifest.contributions import Contribution
from cube.manifest.open import Manifest
from cube.normalise import plan_normalisation
from cube.spec import Band
from cube.tiff.decode import DEFLATE, FLOATING_POINT, HORIZONTAL, LZW, NONE, OLD_DEFLATE, ZSTD
from cube.zarr_metadata import (
    BLOSC,
    ZarrArray,
    band_array,
    coordinate_arrays,
    encode_chunk,
    render_v2,
    root_attributes,
)

type References = dict[str, bytes | tuple[str, int, int]]
"""What each key of a Zarr store of version 2 holds: bytes, or (URL, offset, length)."""

type Coordinates = tuple[tuple[ZarrArray, np.ndarray], ...]
"""Arrays of one chunk, and their values."""

_COMPRESSORS: Mapping[int, Mapping[str, Any] | None] = {
    NONE: None,
    LZW: {"id": "imagecodecs_lzw"},
    DEFLATE: {"id": "zlib", "level": 6},
    OLD_DEFLATE: {"id": "zlib", "level": 6},
    ZSTD: {"id": "zstd", "level": 9},
}
_MOST_INLINE_BYTES = 16 * 1024
"""Of one chunk that no file holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BandReferences:
    """One band's chunks, those that files hold and those that they leave out."""

    band: Band
    array: ZarrArray
    """Compressed and filtered as the files are, in the codecs of version 2."""
    present: dict[str, tuple[str, int, int]]
    """(URL, offset, length) by key."""
    sparse: Mapping[str, float]
    """What tiles hold that a file leaves out, by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """A part of a cube that static references can say: one grid of whole tiles, one encoding a band."""

    grid: Grid
    times: np.ndarray | None
    bands: list[BandReferences]
    beside: Coordinates = ()
    """Further coordinates, and their values."""


def plan_references(manifest: Manifest, *, level: int = 0, dense: bool = False, raw: bool = False) -> References:
    """Return what each key of the cube's Zarr store (version 2) holds; reads no pixel.

    Args:
        manifest: The cube.
        level: 0 is full resolution.
        dense: Whether to give every chunk, those too that hold nothing but the fill value.
        raw: See `plan_whole`.

    Raises:
        ReferencesError: Static references cannot describe the cube; names a band, a file and the reason.
    """
    return render(plan_whole(manifest, level, raw=raw), root_attributes(manifest), dense=dense)


def render(part: Uniform, attributes: Mapping[str, Any], *, dense: bool) -> References:
    """Return what each key of a group holds whose attributes are given."""
    coordinates = [*coordinate_arrays(part.grid, part.times), *part.beside]
    arrays = [array for array, _ in coordinates] + [band.array for band in part.bands]
    references: References = {**render_v2(attributes, arrays)}
    for array, values in coordinates:
        references[chunk_key(array, (0,) * values.ndim)] = encode_chunk(values)
    for band in part.bands:
        references |= band.present
        references |= inline(band, dense=dense)
    return references


def plan_whole(manifest: Manifest, level: int, *, raw: bool = False) -> Uniform:
    """Return a cube as one uniform part; reads no pixel.

    Args:
        manifest: The cube.
        level: 0 is full resolution.
        raw: Whether bands whose files differ in scale or offset alone are given as they are stored: with scale and
            offset as coordinates along time, and an attribute that says that the numbers mean nothing without them.

    Raises:
        ReferencesError: Static references cannot describe the cube; names a band, a file and the reason.
    """
    try:
        manifest.require_lattice()
    except SelectionError as error:
        raise ReferencesError(f"static references cannot describe this cube: {error}") from None
    grid, times = manifest.grid_at(level), manifest.times
    everything = Window(top=0, bottom=grid.height, left=0, right=grid.width)
    dates = range(1 if times is None else len(times))
    bands: list[BandReferences] = []
    beside: list[tuple[ZarrArray, np.ndarray]] = []
    for band in manifest.bands:
        found = manifest.select(band.name, dates, everything, level)
        stored: Band = band
        scaling: Coordinates = ()
        if raw and any(_normalises(manifest, band, each, level) for each in found):
            stored, scaling = _as_stored(manifest, band, found, level)
            found = [each._replace(scale=1.0, offset=0.0) for each in found]
        sources = [SourceLook(manifest, each, level, each.time) for each in found]
        planned = plan_band(stored, sources, grid, times, (0, 0))
        if scaling:
            planned = replace(planned, array=_loud(planned.array))
        bands.append(planned)
        beside += scaling
    return Uniform(grid=grid, times=times, bands=bands, beside=tuple(beside))


class SourceLook:
    """A source as a band's array sees it: what it gives, its facts and its tiles at a level."""

    def __init__(self, manifest: Manifest, found: Contribution, level: int, time: int) -> None:
        self.found, self.time = found, time
        self.facts, self.image = manifest.facts(found.source, level), manifest.image(found.source, level)

    @property
    def plane(self) -> int:
        """Position among the planes of the file's tiles."""
        is_by_band = self.facts.interleave == "band" and self.facts.samples > 1
        return self.found.sample if is_by_band else 0

    @property
    def extent(self) -> tuple[int, int, int, int] | None:
        """First row, column, height and width; None where these are whole tiles, which other sources may lie beside."""
        facts, image = self.facts, self.image
        is_whole = not (
            facts.row % image.tile_height
            or facts.column % image.tile_width
            or image.height % image.tile_height
            or image.width % image.tile_width
        )
        return None if is_whole else (facts.row, facts.column, image.height, image.width)

    @property
    def encoding(self) -> tuple[Any, ...]:
        """All that is one for an array."""
        image, found = self.image, self.found
        how = (image.compression, image.predictor, image.tile_height, image.tile_width, self.facts.byteorder)
        return *how, self.facts.dtype.name, str(found.nodata), found.scale, found.offset

    def stored(self, band: Band) -> Band:
        """Return the band as this source stores it."""
        nodata, found = self.found.nodata, replace(band, dtype=self.facts.dtype.name)
        if not band.classes:  # whose "no data" is a class
            found = replace(found, nodata=nodata, hole=0 if nodata is None else nodata)
        return replace(found, scale=self.found.scale, offset=self.found.offset)


def plan_band(
    band: Band, sources: Sequence[SourceLook], grid: Grid, times: np.ndarray | None, corner: tuple[int, int]
) -> BandReferences:
    """Return the chunks of a band on a grid.

    Args:
        band: As the sources store it.
        sources: Of the band.
        grid: Of the array.
        times: Of the array.
        corner: Row and column of the grid's first pixel, as the sources count them.
    """
    array: ZarrArray | None = None
    present: dict[str, tuple[str, int, int]] = {}
    sparse: dict[str, float] = {}
    for source in sources:
        facts, image = source.facts, source.image
        down, across = facts.row - corner[0], facts.column - corner[1]
        _require_describable(band, source, grid, (down, across))
        _require_alike(band, sources[0], source)
        array = array or _array(band, grid, times, source)
        start = (source.time,) if times is not None else ()
        row, column = down // image.tile_height, across // image.tile_width
        url = local_name(facts.href)
        offsets, lengths = image.offsets[source.plane].tolist(), image.lengths[source.plane].tolist()
        for j, i in itertools.product(range(len(offsets)), range(len(offsets[0]))):
            key = chunk_key(array, (*start, row + j, column + i))
            if key in present or key in sparse:
                raise _refusal(band, facts.href, "shares pixels with another source, and a reference is to one of them")
            if lengths[j][i]:
                present[key] = (url, offsets[j][i], lengths[j][i])
            else:
                sparse[key] = 0 if facts.nodata is None else facts.nodata
    if array is None:
        raise ReferencesError(f"band {band.name!r} has no source at this level")
    return BandReferences(band=band, array=array, present=present, sparse=sparse)


def _normalises(manifest: Manifest, band: Band, found: Contribution, level: int) -> bool:
    dtype = manifest.facts(found.source, level).dtype
    return plan_normalisation(dtype, found.nodata, found.scale, found.offset, band) is not None


def _as_stored(manifest: Manifest, band: Band, found: Sequence[Contribution], level: int) -> tuple[Band, Coordinates]:
    """Return a band of stored numbers, whose scale and offset are coordinates: these with their values."""
    first = SourceLook(manifest, found[0], level, 0).stored(band)
    count = 1 if manifest.times is None else len(manifest.times)
    scaling = np.full((2, count), np.nan)
    for each in found:
        source = SourceLook(manifest, each, level, each.time)
        stored = source.stored(band)
        if (stored.dtype, str(stored.nodata)) != (first.dtype, str(first.nodata)):
            raise _refusal(band, source.facts.href, f"stores {stored.dtype}, nodata {stored.nodata}; others do not")
        known = scaling[:, each.time]
        if not np.isnan(known).all() and (known != (stored.scale, stored.offset)).any():
            raise _refusal(band, source.facts.href, "has another scale or offset than a source of the same time")
        scaling[:, each.time] = stored.scale, stored.offset
    dims = () if manifest.times is None else ("time",)
    coordinates = []
    for what, values in zip(("scale", "offset"), scaling, strict=True):
        array = ZarrArray(
            name=f"{band.name}_{what}",
            dims=dims,
            shape=(count,) * len(dims),
            chunks=(count,) * len(dims),
            dtype=np.dtype("float64"),
            attributes={"long_name": f"{what} of {band.name}, as its files have it"},
            compressor=BLOSC,
        )
        coordinates.append((array, values.reshape(array.shape)))
    return replace(first, scale=1.0, offset=0.0), tuple(coordinates)


def _loud(array: ZarrArray) -> ZarrArray:
    """Return a band's array that says that its numbers are as they are stored."""
    scale, offset = f"{array.name}_scale", f"{array.name}_offset"
    said = {
        "STORED_NUMBERS": f"not physical values: multiply by {scale} and add {offset}, which differ between files",
        "coordinates": f"{SPATIAL_REF} {scale} {offset}",
    }
    return replace(array, attributes={**array.attributes, **said})


def _refusal(band: Band, href: str, reason: str) -> ReferencesError:
    return ReferencesError(
        f"static references cannot describe band {band.name!r}: {href} {reason}; "
        "serve the cube instead (`cube serve`), which needs no such thing"
    )


def _require_describable(band: Band, source: SourceLook, grid: Grid, corner: tuple[int, int]) -> None:
    found, facts, image = source.found, source.facts, source.image
    if facts.path != "fast":
        raise _refusal(band, facts.href, "is read by GDAL")
    if facts.validity is not None:
        raise _refusal(band, facts.href, f"has valid pixels by its {facts.validity}")
    if plan_normalisation(facts.dtype, found.nodata, found.scale, found.offset, band) is not None:
        stored = f"{facts.dtype}, nodata {found.nodata}, scale {found.scale:g}, offset {found.offset:g}"
        own = f"{band.dtype}, nodata {band.nodata}, scale {band.scale:g}, offset {band.offset:g}"
        raise _refusal(band, facts.href, f"stores other numbers ({stored}) than the cube ({own})")
    if image.strips and image.height % image.tile_height:
        raise _refusal(band, facts.href, "is in strips, the last of which is short")
    if facts.samples > 1 and facts.interleave != "band":
        raise _refusal(band, facts.href, f"holds {facts.samples} bands pixel by pixel, and a reference is a whole tile")
    if image.compression not in _COMPRESSORS:
        raise _refusal(band, facts.href, f"has compression {image.compression}")
    axes = (
        ("rows", corner[0], image.height, image.tile_height, grid.height),
        ("columns", corner[1], image.width, image.tile_width, grid.width),
    )
    for what, start, length, tile, whole in axes:
        if start % tile:
            raise _refusal(band, facts.href, f"starts {start} {what} into the cube, inside a tile of {tile}")
        if length % tile and start + length < whole:
            raise _refusal(band, facts.href, f"ends inside a tile ({length} {what}, tiles of {tile}) within the cube")


def _require_alike(band: Band, first: SourceLook, other: SourceLook) -> None:
    facts = [
        {
            "compression": each.image.compression,
            "predictor": each.image.predictor,
            "tile shape": (each.image.tile_height, each.image.tile_width),
            "byte order": each.facts.byteorder,
        }
        for each in (first, other)
    ]
    for what, value in facts[0].items():
        if facts[1][what] != value:
            reason = f"differs from {first.facts.href} in {what}: {facts[1][what]} and {value}"
            raise _refusal(band, other.facts.href, reason)


def _array(band: Band, grid: Grid, times: np.ndarray | None, source: SourceLook) -> ZarrArray:
    facts, image = source.facts, source.image
    tile, dtype = (image.tile_height, image.tile_width), np.dtype(band.dtype)
    filters: tuple[Mapping[str, Any], ...] = ()
    stored = dtype.newbyteorder(">" if facts.byteorder == ">" else "<")
    # Without shape and dtype the filters of imagecodecs give wrong pixels and no error.
    if image.predictor == HORIZONTAL:
        # Differences are integers modulo the word, for floats too.
        word = stored if dtype.kind in "iu" else np.dtype(f"{facts.byteorder}u{dtype.itemsize}")
        filters = ({"id": "imagecodecs_delta", "axis": -1, "dist": 1, "shape": list(tile), "dtype": word.str},)
    elif image.predictor == FLOATING_POINT:
        # Bytes lie sorted by significance, whatever the file's byte order: numbers come out in the reader's.
        stored = dtype.newbyteorder("<")
        filters = ({"id": "imagecodecs_floatpred", "axis": -1, "dist": 1, "shape": list(tile), "dtype": stored.str},)
    array = band_array(band, grid, times, tile)
    attributes = dict(array.attributes) | {"coordinates": SPATIAL_REF}  # xc and yc are no part of references
    return replace(
        array, attributes=attributes, dtype=stored, compressor=_COMPRESSORS[image.compression], filters=filters
    )


def inline(band: BandReferences, *, dense: bool = False) -> References:
    """Return the chunks that no file holds, as bytes where their absence would not say what they hold."""
    encoded: dict[float, bytes] = {}
    references: References = {}
    fill = band.array.fill
    for position in itertools.product(*map(range, band.array.counts)):
        key = chunk_key(band.array, position)
        if key in band.present:
            continue
        value = band.sparse.get(key, band.band.hole)
        if fill is not None and not dense and (value == fill or (math.isnan(value) and math.isnan(fill))):
            continue
        if value not in encoded:
            encoded[value] = _constant(band, value)
        references[key] = encoded[value]
    return references


def _constant(band: BandReferences, value: float) -> bytes:
    """Return a tile that holds one value everywhere, encoded as the band's files are."""
    import numcodecs

    array = band.array
    encoded: Any = np.full(array.chunks[-2:], value, array.dtype)
    try:
        for config in array.filters:
            word = np.dtype(config["dtype"])
            encoded = np.frombuffer(numcodecs.get_codec(dict(config)).encode(encoded.view(word)), word)
        if array.compressor is not None:
            encoded = numcodecs.get_codec(dict(array.compressor)).encode(encoded)
    except ValueError as error:
        raise MissingExtraError(f"references to band {band.band.name!r} ({error})", "kerchunk") from None
    data = bytes(encoded)
    if len(data) > _MOST_INLINE_BYTES:
        raise ReferencesError(
            f"static references cannot describe band {band.band.name!r}: parts of it are in no file, and its tiles are "
            "not compressed; serve the cube instead (`cube serve`)"
        )
    return data


def chunk_key(array: ZarrArray, position: tuple[int, ...]) -> str:
    """Return the key of a chunk, as version 2 of Zarr has it."""
    return f"{array.name}/{'.'.join(map(str, position)) or '0'}"


def local_name(href: str) -> str:
    """Return what fsspec opens: URLs as they are, files by path, as it takes the "%20" of a file:// URL for letters."""
    path = local_path(href)
    return href if path is None else path.as_posix()
