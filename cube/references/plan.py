"""Which bytes of which file each chunk of a cube is, where static references can say the whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cube.conventions import SPATIAL_REF
from cube.errors import MissingExtraError, ReferencesError, SelectionError
from cube.grid import Grid, Window
from cube.io.stores import local_path
from cube.manifest.contributions import Contribution
from cube.manifest.facts import SourceFacts, SourceLevel
from cube.manifest.open import Manifest
from cube.normalise import plan_normalisation
from cube.spec import Band
from cube.tiff.decode import DEFLATE, FLOATING_POINT, HORIZONTAL, LZW, NONE, OLD_DEFLATE, ZSTD
from cube.zarr_metadata import ZarrArray, band_array, coordinate_arrays, encode_chunk, render_v2, root_attributes

type References = dict[str, bytes | tuple[str, int, int]]
"""What each key of a Zarr store of version 2 holds: bytes, or (URL, offset, length)."""

_COMPRESSORS: Mapping[int, Mapping[str, Any] | None] = {
    NONE: None,
    LZW: {"id": "imagecodecs_lzw"},
    DEFLATE: {"id": "zlib", "level": 6},
    OLD_DEFLATE: {"id": "zlib", "level": 6},
    ZSTD: {"id": "zstd", "level": 9},
}
_MOST_INLINE_BYTES = 16 * 1024
"""Of one chunk that no file holds."""


def plan_references(manifest: Manifest, *, level: int = 0, dense: bool = False) -> References:
    """Return what each key of the cube's Zarr store (version 2) holds; reads no pixel.

    Args:
        manifest: The cube.
        level: 0 is full resolution.
        dense: Whether to give every chunk, those too that hold nothing but the fill value.

    Raises:
        ReferencesError: Static references cannot describe the cube; names a band, a file and the reason.
    """
    bands = plan_bands(manifest, level)
    coordinates = coordinate_arrays(manifest, level)
    arrays = [array for array, _ in coordinates] + [band.array for band in bands]
    references: References = {**render_v2(root_attributes(manifest), arrays)}
    for array, values in coordinates:
        references[chunk_key(array, (0,) * values.ndim)] = encode_chunk(values)
    for band in bands:
        references |= band.present
        references |= inline(band, dense=dense)
    return references


def plan_bands(manifest: Manifest, level: int) -> list[BandReferences]:
    """Return the references of each band; reads no pixel.

    Raises:
        ReferencesError: Static references cannot describe the cube; names a band, a file and the reason.
    """
    try:
        manifest.require_lattice()
    except SelectionError as error:
        raise ReferencesError(f"static references cannot describe this cube: {error}") from None
    return [_plan_band(manifest, band, level) for band in manifest.bands]


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


def _plan_band(manifest: Manifest, band: Band, level: int) -> BandReferences:
    grid, times = manifest.grid_at(level), manifest.times
    everything = Window(top=0, bottom=grid.height, left=0, right=grid.width)
    dates = range(1 if times is None else len(times))
    array: ZarrArray | None = None
    first: tuple[SourceFacts, SourceLevel] | None = None
    present: dict[str, tuple[str, int, int]] = {}
    sparse: dict[str, float] = {}
    for found in manifest.select(band.name, dates, everything, level):
        facts, image = manifest.facts(found.source, level), manifest.image(found.source, level)
        first = first or (facts, image)
        _require_describable(band, found, facts, image, grid)
        _require_alike(band, first, (facts, image))
        array = array or _array(manifest, band, level, facts, image)
        plane = found.sample if facts.interleave == "band" and facts.samples > 1 else 0
        start = (found.time,) if times is not None else ()
        row, column = facts.row // image.tile_height, facts.column // image.tile_width
        url = local_name(facts.href)
        offsets, lengths = image.offsets[plane].tolist(), image.lengths[plane].tolist()
        for j, i in itertools.product(range(len(offsets)), range(len(offsets[0]))):
            key = chunk_key(array, (*start, row + j, column + i))
            if key in present or key in sparse:
                raise _refusal(band, facts.href, "shares pixels with another source, and a reference is to one of them")
            if lengths[j][i]:
                present[key] = (url, offsets[j][i], lengths[j][i])
            else:
                sparse[key] = 0 if facts.nodata is None else facts.nodata
    if array is None:
        raise ReferencesError(f"band {band.name!r} has no source at level {level}")
    return BandReferences(band=band, array=array, present=present, sparse=sparse)


def _refusal(band: Band, href: str, reason: str) -> ReferencesError:
    return ReferencesError(
        f"static references cannot describe band {band.name!r}: {href} {reason}; "
        "serve the cube instead (`cube serve`), which needs no such thing"
    )


def _require_describable(band: Band, found: Contribution, facts: SourceFacts, image: SourceLevel, grid: Grid) -> None:
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
        ("rows", facts.row, image.height, image.tile_height, grid.height),
        ("columns", facts.column, image.width, image.tile_width, grid.width),
    )
    for what, start, length, tile, whole in axes:
        if start % tile:
            raise _refusal(band, facts.href, f"starts {start} {what} into the cube, inside a tile of {tile}")
        if length % tile and start + length < whole:
            raise _refusal(band, facts.href, f"ends inside a tile ({length} {what}, tiles of {tile}) within the cube")


def _require_alike(band: Band, first: tuple[SourceFacts, SourceLevel], other: tuple[SourceFacts, SourceLevel]) -> None:
    facts = [
        {
            "compression": image.compression,
            "predictor": image.predictor,
            "tile shape": (image.tile_height, image.tile_width),
            "byte order": facts.byteorder,
        }
        for facts, image in (first, other)
    ]
    for what, value in facts[0].items():
        if facts[1][what] != value:
            reason = f"differs from {first[0].href} in {what}: {facts[1][what]} and {value}"
            raise _refusal(band, other[0].href, reason)


def _array(manifest: Manifest, band: Band, level: int, facts: SourceFacts, image: SourceLevel) -> ZarrArray:
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
    array = band_array(manifest, band, level, tile)
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
