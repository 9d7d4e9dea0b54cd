"""Which source gives which band at which time, and where it lies: what of the sources tables is kept in memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from cube.manifest.schema import OPEN_COLUMNS, number_from_text
from cube.manifest.tables import Part, PartFile, integers, one_array
from cube.spec import Band

_FILES_AT_ONCE = 8
_NO_TIME = np.iinfo("int64").min
_SECONDS_A_DEGREE = 240
"""Of longitude, by which the sun is later."""
_MICROSECONDS_A_DAY = 86_400_000_000


class Contribution(NamedTuple):
    """A sample of a source that is a band of the cube at one time, and what its stored numbers mean."""

    source: int
    """Position in the manifest."""
    sample: int
    """Position in the file."""
    time: int
    """Position on the cube's time axis; 0 in a cube without time."""
    nodata: float | int | None
    scale: float
    offset: float
    """Physical value = stored number * scale + offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where each source lies, on its full-resolution grid and in the files; int64 arrays (sources,)."""

    part: np.ndarray
    part_row: np.ndarray
    """Row in the part's sources table."""
    tiles_row: np.ndarray
    """First row in the part's tiles table."""
    levels: np.ndarray
    masks: np.ndarray
    """1 where the levels' masks follow the levels."""
    grid: np.ndarray
    """Position among the cube's grids."""
    row: np.ndarray
    column: np.ndarray
    height: np.ndarray
    width: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """What one part's sources give: arrays (bands of sources,), by source."""

    owner: np.ndarray
    band: np.ndarray
    sample: np.ndarray
    time: np.ndarray
    """Microseconds since 1970; `_NO_TIME` where there is none."""
    nodata: np.ndarray
    """Position in `values`."""
    scale: np.ndarray
    offset: np.ndarray
    values: list[float | int | None]


class Contributions:
    """The contributions of all sources, by band and time."""

    def __init__(self, parts: Sequence[Part], files: Sequence[PartFile], bands: Sequence[Band]) -> None:
        if not parts:
            raise ValueError("it names no parts")
        with ThreadPoolExecutor(min(_FILES_AT_ONCE, len(files))) as pool:  # round trips, where they are remote
            tables = list(pool.map(lambda file: file.read(OPEN_COLUMNS), files))
        found = [_places(i, part, table) for i, (part, table) in enumerate(zip(parts, tables, strict=True))]
        self.places = Places(
            **{name: np.concatenate([getattr(each, name) for each in found]) for name in Places.__slots__}
        )
        starts = np.cumsum([0, *(len(each.part) for each in found)])
        entries = [
            _entries(part, table, bands, int(start)) for part, table, start in zip(parts, tables, starts, strict=False)
        ]
        self._arrange(entries, len(bands))

    def _arrange(self, entries: Sequence[_Entries], bands: int) -> None:
        joined = {
            name: np.concatenate([getattr(each, name) for each in entries])
            for name in ("owner", "band", "sample", "time", "scale", "offset")
        }
        shifts = np.cumsum([0, *(len(each.values) for each in entries)])
        nodata = np.concatenate([each.nodata + shift for each, shift in zip(entries, shifts, strict=False)])
        self._values = [value for each in entries for value in each.values]
        stamps = joined["time"]
        dated = stamps != _NO_TIME
        if 0 < np.count_nonzero(dated) < len(dated):
            raise ValueError("some of its bands have a time and some have none")
        self.times: np.ndarray | None = None
        times = np.zeros(len(stamps), "int64")
        if len(dated) and dated[0]:
            unique, times = np.unique(stamps, return_inverse=True)
            self.times = unique.view("datetime64[us]")
        # Within a band by time: the dates of a read are slices.
        order = np.lexsort((joined["owner"], times, joined["band"]))
        self._owner, self._sample, self._scale, self._offset = (
            joined[name][order] for name in ("owner", "sample", "scale", "offset")
        )
        self._time, self._nodata = times[order], nodata[order]
        self._bounds = np.searchsorted(joined["band"][order], np.arange(bands + 1))

    def by_day(self, longitude: float) -> Contributions:
        """Return the same contributions with one step a day by the sun, called by its first time.

        Args:
            longitude: Degrees east of where days are counted.
        """
        if self.times is None:
            return self
        stamps = self.times.view("int64")[self._time]
        shift = int(longitude * _SECONDS_A_DEGREE) * 1_000_000
        days, axis = np.unique((stamps + shift) // _MICROSECONDS_A_DAY, return_inverse=True)
        labels = np.full(len(days), np.iinfo("int64").max)
        np.minimum.at(labels, axis, stamps)
        return self._regrouped(axis, labels)

    def by_item(self, items: Sequence[str]) -> Contributions:
        """Return the same contributions with one step an item and time, in the order of times and then of items.

        Args:
            items: Of each source.
        """
        if self.times is None:
            return self
        stamps = self.times.view("int64")[self._time]
        _, codes = np.unique(np.array(items, object).astype(str), return_inverse=True)
        steps, axis = np.unique(np.stack([stamps, codes[self._owner]], axis=1), axis=0, return_inverse=True)
        return self._regrouped(axis, np.ascontiguousarray(steps[:, 0]))

    def _regrouped(self, axis: np.ndarray, stamps: np.ndarray) -> Contributions:
        """Return the same contributions at other steps: `axis` is the position of each entry's in `stamps`."""
        found = copy.copy(self)
        found.times = stamps.view("datetime64[us]")
        bands = np.repeat(np.arange(len(self._bounds) - 1), np.diff(self._bounds))
        order = np.lexsort((self._owner, axis, bands))
        found._time = axis[order].astype("int64")  # noqa: SLF001 - its own
        for name in ("_owner", "_sample", "_scale", "_offset", "_nodata"):
            setattr(found, name, getattr(self, name)[order])
        return found

    def first_times(self, sources: int) -> np.ndarray:
        """Return the first time that each source gives something at, int64 microseconds; 0 in a cube without time."""
        found = np.zeros(sources, "int64")
        if self.times is not None:
            found[:] = np.iinfo("int64").max
            np.minimum.at(found, self._owner, self.times.view("int64")[self._time])
        return found

    def find(self, band: int, times: Sequence[int]) -> np.ndarray:
        """Return the entries of a band (by position) at some of the times."""
        begin, end = self._bounds[band], self._bounds[band + 1]
        if self.times is None:
            return np.arange(begin, end)
        wanted = np.unique(np.asarray(times, "int64"))
        if len(wanted) == len(self.times):
            return np.arange(begin, end)
        here = self._time[begin:end]
        starts = np.searchsorted(here, wanted, side="left")
        counts = np.searchsorted(here, wanted, side="right") - starts
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        found: np.ndarray = begin + np.repeat(starts, counts) + steps
        return found

    def owners(self, entries: np.ndarray) -> np.ndarray:
        """Return the sources of some entries."""
        owners: np.ndarray = self._owner[entries]
        return owners

    def get(self, entries: np.ndarray) -> list[Contribution]:
        """Return some entries as values, in the order of the sources."""
        entries = entries[np.argsort(self._owner[entries], kind="stable")]
        values = (self._values[code] for code in self._nodata[entries].tolist())
        columns = [each[entries].tolist() for each in (self._owner, self._sample, self._time)]
        rest = [each[entries].tolist() for each in (self._scale, self._offset)]
        return list(map(Contribution, *columns, values, *rest))


def _places(number: int, part: Part, table: pa.Table) -> Places:
    if len(table) != part.rows:
        raise ValueError(f"{part.sources} has {len(table)} rows instead of {part.rows}")
    kept = part.kept
    names = ("row", "column", "height", "width", "levels", "tiles_row")
    found = {name: integers(table[name])[kept].astype("int64") for name in names}
    for name in ("grid", "masks"):  # which older schemas do not have
        has = name in table.column_names
        found[name] = integers(table[name])[kept].astype("int64") if has else np.zeros_like(kept)
    down, across = part.shifts(found["grid"])
    found["row"] += down
    found["column"] += across
    return Places(part=np.full_like(kept, number), part_row=kept, **found)


def _entries(part: Part, table: pa.Table, bands: Sequence[Band], start: int) -> _Entries:
    """Return what the sources of a part give; `start` is the position of its first source in the manifest."""
    lists = one_array(table["bands"])
    counts = np.diff(np.from_dlpack(lists.offsets))
    kept = np.zeros(len(table), bool)
    kept[part.kept] = True
    mine = np.repeat(kept, counts)
    owner = np.repeat(np.cumsum(kept) - 1 + start, counts)[mine]
    flat = lists.flatten()
    names = flat.field("name").dictionary_encode()
    positions = {band.name: i for i, band in enumerate(bands)}
    known = np.array([positions.get(name, -1) for name in names.dictionary.to_pylist()], "int64")
    band = known[integers(names.indices)][mine]
    if (band < 0).any():
        raise ValueError("its sources give bands that it does not describe")
    stamps = np.repeat(integers(table["time"], _NO_TIME), counts)[mine]
    sample = integers(flat.field("sample"))[mine].astype("int64")
    if flat.type.get_field_index("scale") < 0:  # schema 1: what the band says holds for all of its sources
        scale, offset = (np.array(values)[band] for values in zip(*((b.scale, b.offset) for b in bands), strict=True))
        values: list[float | int | None] = [each.nodata for each in bands]
        return _Entries(
            owner=owner, band=band, sample=sample, time=stamps, nodata=band, scale=scale, offset=offset, values=values
        )
    own = integers(flat.field("time"), _NO_TIME)[mine]
    texts = flat.field("nodata").dictionary_encode()
    return _Entries(
        owner=owner,
        band=band,
        sample=sample,
        time=np.where(own == _NO_TIME, stamps, own),
        nodata=integers(texts.indices, -1)[mine].astype("int64") + 1,
        scale=np.from_dlpack(flat.field("scale"))[mine],
        offset=np.from_dlpack(flat.field("offset"))[mine],
        values=[None, *map(number_from_text, texts.dictionary.to_pylist())],
    )
