"""What a manifest says of one source and of one of its images, decoded a row group at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from cube.manifest.schema import FACT_COLUMNS, SOURCE_DEFAULTS, TILE_DEFAULTS, number_from_text
from cube.manifest.tables import integers, one_array

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = int(np.iinfo("int64").min)
_VALUE_BYTES = 1024
"""Of a small Python object, its numbers and texts."""
_NUMBERS = ("width", "height", "tile_width", "tile_height", "compression", "predictor", "strips", "bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What the reader needs of one source apart from its tiles."""

    href: str
    etag: str | None
    """Without quotes."""
    size: int
    """Bytes of the object when its header was read."""
    last_modified: datetime | None
    byteorder: str
    dtype: np.dtype[Any]
    """Of the stored numbers, in native byte order."""
    samples: int
    interleave: str
    photometric: int
    """TIFF's code."""
    validity: str | None
    """Where a "mask" image or an "alpha" sample says which pixels are valid."""
    path: str
    """"fast", or "gdal" where the pixels are left to GDAL."""
    nodata: float | int | None
    """The file's own word: what tiles hold that it leaves out, 0 where None."""
    levels: int
    """Full resolution and overviews."""
    row: int
    """Of the upper edge, on the cube's grid at the level that was asked for."""
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceLevel:
    """One image of one source, as the reader needs it: full resolution or an overview, or the mask of one."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    compression: int
    predictor: int
    strips: bool
    """Whether the tiles are strips, of which the last has only the rows that are left."""
    bits: int
    """1 for masks of one bit a pixel, else 0."""
    tables: bytes | None
    """JPEG tables that the tiles share."""
    offsets: np.ndarray
    """int64 (planes, tile rows, tile columns); of no planes where the pixels are left to GDAL."""
    lengths: np.ndarray
    """int64, as `offsets`; 0 is a tile that the file leaves out."""


class FactGroup:
    """The facts of the sources of one row group, from a table of `FACT_COLUMNS`.

    A read of many dates asks for a row of each of many groups: what a row costs counts, and taking it out of a table
    of Arrow costs ten times as much.
    """

    def __init__(self, table: pa.Table) -> None:
        self._defaults = {name: SOURCE_DEFAULTS.get(name) for name in FACT_COLUMNS if name not in table.column_names}
        self._modified = integers(table["last_modified"], _NEVER)
        self._sizes = integers(table["size"])
        self._own = {name: one_array(table[name]) for name in ("href", "etag")}
        # Of the others there are few values; -1, the code of null, takes the last.
        self._codes: dict[str, np.ndarray] = {}
        self._values: dict[str, list[Any]] = {}
        for name in table.column_names:
            if name in ("last_modified", "size", *self._own):
                continue
            array = one_array(table[name])
            encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
            self._codes[name] = integers(encoded.indices, -1)
            self._values[name] = [*map(_PARSERS.get(name, _same), encoded.dictionary.to_pylist()), None]
        self.nbytes: int = table.nbytes

    def row(self, row: int) -> dict[str, Any]:
        """Return the values of a row by the names of `SourceFacts`; place and levels are not among them."""
        values = dict(self._defaults)
        for name, codes in self._codes.items():
            values[name] = self._values[name][codes[row]]
        for name, array in self._own.items():
            values[name] = array[row].as_py()
        modified = int(self._modified[row])
        values["last_modified"] = None if modified == _NEVER else _EPOCH + timedelta(microseconds=modified)
        values["size"] = int(self._sizes[row])
        return values

    def copy(self, row: int) -> tuple[dict[str, Any], int]:
        """Return the values of a row, and about the bytes that they take."""
        return self.row(row), _VALUE_BYTES


def _same(value: Any) -> Any:
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {"dtype": np.dtype, "nodata": number_from_text}


class ImageGroup:
    """The images of one row group, from a tiles table."""

    def __init__(self, table: pa.Table) -> None:
        self._numbers = [
            integers(table[name]) if name in table.column_names else np.full(len(table), TILE_DEFAULTS[name])
            for name in _NUMBERS
        ]
        self._tables = one_array(table["tables"]) if "tables" in table.column_names else pa.nulls(len(table))
        offsets, lengths = one_array(table["offsets"]), one_array(table["lengths"])
        self._bounds = np.from_dlpack(offsets.offsets)  # of a whole column: they begin at 0
        self._offsets, self._lengths = np.from_dlpack(offsets.flatten()), np.from_dlpack(lengths.flatten())
        self.nbytes: int = table.nbytes

    def row(self, row: int) -> SourceLevel:
        """Return the image of a row."""
        numbers = (int(each[row]) for each in self._numbers)
        width, height, tile_width, tile_height, compression, predictor, strips, bits = numbers
        shape = (-1, -(-height // tile_height), -(-width // tile_width)) if width else (0, 0, 0)
        tiles = slice(self._bounds[row], self._bounds[row + 1])
        return SourceLevel(
            width=width,
            height=height,
            tile_width=tile_width,
            tile_height=tile_height,
            compression=compression,
            predictor=predictor,
            strips=bool(strips),
            bits=bits,
            tables=self._tables[row].as_py(),
            offsets=self._offsets[tiles].reshape(shape),
            lengths=self._lengths[tiles].reshape(shape),
        )

    def copy(self, row: int) -> tuple[SourceLevel, int]:
        """Return the image of a row with arrays of its own, and about the bytes that it takes."""
        image = self.row(row)
        own = replace(image, offsets=image.offsets.copy(), lengths=image.lengths.copy())
        return own, own.offsets.nbytes + own.lengths.nbytes + len(own.tables or b"") + _VALUE_BYTES
