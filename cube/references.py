"""Kerchunk references, JSON and Parquet: what others open without us, where static references can say the whole."""

from __future__ import annotations

import base64
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
_ROWS_A_FILE = 100_000


def to_kerchunk(manifest: Manifest, path: str | Path, *, level: int = 0) -> int:
    """Write a cube's references: `xarray.open_dataset(path, engine="kerchunk")` opens them without cogcube.

    Args:
        manifest: The cube.
        path: A name that ends with .json, or with .parq or .parquet for a folder that opens in parts, for archives of
            more than some hundred thousand tiles.
        level: 0 is full resolution.

    Returns:
        How many tiles it refers to.

    Raises:
        ReferencesError: Static references cannot describe the cube (names a band, a file and the reason), or `path`
            cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".json", ".parq", ".parquet"):
        raise ReferencesError(f"{path}: give a name that ends with .json or .parq")
    # In Parquet an absent chunk is a null, which readers with pandas 3 take for a URL.
    references = plan_references(manifest, level=level, dense=path.suffix != ".json")
    try:
        if path.suffix == ".json":
            _write_json(path, references)
        else:
            _write_parquet(path, references)
    except OSError as error:
        raise ReferencesError(f"{path} cannot be written: {error}") from error
    return sum(isinstance(value, tuple) for value in references.values())


def plan_references(manifest: Manifest, *, level: int = 0, dense: bool = False) -> References:
    """Return what each key of the cube's Zarr store (version 2) holds; reads no pixel.

    Args:
        manifest: The cube.
        level: 0 is full resolution.
        dense: Whether to give every chunk, those too that hold nothing but the fill value.

    Raises:
        ReferencesError: Static references cannot describe the cube; names a band, a file and the reason.
    """
    try:
        manifest.require_lattice()
    except SelectionError as error:
        raise ReferencesError(f"static references cannot describe this cube: {error}") from None
    bands = [_plan_band(manifest, band, level) for band in manifest.bands]
    coordinates = coordinate_arrays(manifest, level)
    arrays = [array for array, _ in coordinates] + [band.array for band in bands]
    references: References = {**render_v2(root_attributes(manifest), arrays)}
    for array, values in coordinates:
        references[_key(array, (0,) * values.ndim)] = encode_chunk(values)
    for band in bands:
        references |= band.present
        references |= _inline(band, dense)
    return references


@dataclass(frozen=True, slots=True, kw_only=True)
class _BandReferences:
    """One band's chunks, those that files hold and those that they leave out."""

    band: Band
    array: ZarrArray
    present: dict[str, tuple[str, int, int]]
    sparse: Mapping[str, float]
    """What tiles hold that a file leaves out, by key."""


def _plan_band(manifest: Manifest, band: Band, level: int) -> _BandReferences:
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
        url = _url(facts.href)
        offsets, lengths = image.offsets[plane].tolist(), image.lengths[plane].tolist()
        for j, i in itertools.product(range(len(offsets)), range(len(offsets[0]))):
            key = _key(array, (*start, row + j, column + i))
            if key in present or key in sparse:
                raise _refusal(band, facts.href, "shares pixels with another source, and a reference is to one of them")
            if lengths[j][i]:
                present[key] = (url, offsets[j][i], lengths[j][i])
            else:
                sparse[key] = 0 if facts.nodata is None else facts.nodata
    if array is None:
        raise ReferencesError(f"band {band.name!r} has no source at level {level}")
    return _BandReferences(band=band, array=array, present=present, sparse=sparse)


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


def _inline(band: _BandReferences, dense: bool) -> References:
    """Return the chunks that no file holds, as bytes where their absence would not say what they hold."""
    encoded: dict[float, bytes] = {}
    references: References = {}
    fill = band.array.fill
    for position in itertools.product(*map(range, band.array.counts)):
        key = _key(band.array, position)
        if key in band.present:
            continue
        value = band.sparse.get(key, band.band.hole)
        if fill is not None and not dense and (value == fill or (math.isnan(value) and math.isnan(fill))):
            continue
        if value not in encoded:
            encoded[value] = _constant(band, value)
        references[key] = encoded[value]
    return references


def _constant(band: _BandReferences, value: float) -> bytes:
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


def _key(array: ZarrArray, position: tuple[int, ...]) -> str:
    return f"{array.name}/{'.'.join(map(str, position)) or '0'}"


def _url(href: str) -> str:
    """Return what fsspec opens: URLs as they are, files by path, as it takes the "%20" of a file:// URL for letters."""
    path = local_path(href)
    return href if path is None else path.as_posix()


def _write_json(path: Path, references: References) -> None:
    if path.is_dir():
        raise ReferencesError(f"{path} is a folder; choose another name")
    rendered = {key: value if isinstance(value, tuple) else _text(key, value) for key, value in references.items()}
    text = json.dumps({"version": 1, "refs": rendered}, separators=(",", ":"))
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _holds_references(folder: Path) -> bool:
    metadata = folder / ".zmetadata"
    return metadata.is_file() and "record_size" in json.loads(metadata.read_bytes())


def _text(key: str, value: bytes) -> str:
    is_metadata = key.rpartition("/")[2].startswith(".z")
    return value.decode() if is_metadata else "base64:" + base64.b64encode(value).decode()


def _write_parquet(path: Path, references: References) -> None:
    """Write what fsspec's LazyReferenceMapper reads: a folder a variable, its chunks in C order, 100,000 a file."""
    if path.exists() and not _holds_references(path):
        raise ReferencesError(f"{path} exists and holds no references; choose another name")
    metadata = json.loads(references[".zmetadata"])  # type: ignore[arg-type]  # metadata is bytes
    with _replacing(path) as temporary:
        temporary.mkdir()
        (temporary / ".zmetadata").write_text(json.dumps({**metadata, "record_size": _ROWS_A_FILE}), encoding="utf-8")
        for name, document in metadata["metadata"].items():
            if not name.endswith("/.zarray"):
                continue
            variable = name.removesuffix("/.zarray")
            counts = [-(-n // chunk) for n, chunk in zip(document["shape"], document["chunks"], strict=True)]
            keys = (f"{variable}/{'.'.join(map(str, p)) or '0'}" for p in itertools.product(*map(range, counts)))
            (temporary / variable).mkdir()
            for number, batch in enumerate(itertools.batched(keys, _ROWS_A_FILE)):
                table = _reference_table([references[key] for key in batch])
                pq.write_table(table, temporary / variable / f"refs.{number}.parq", compression="zstd")


def _reference_table(values: list[bytes | tuple[str, int, int]]) -> pa.Table:
    rows = [("", 0, 0, value) if isinstance(value, bytes) else (*value, None) for value in values]
    path, offset, size, raw = zip(*rows, strict=True)
    return pa.table(
        {
            "path": pa.array(path, pa.string()),
            "offset": pa.array(offset, pa.int64()),
            "size": pa.array(size, pa.int64()),
            "raw": pa.array(raw, pa.binary()),
        }
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is there takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield folder / "new"
        if path.is_dir():
            path.replace(folder / "old")
        (folder / "new").replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
