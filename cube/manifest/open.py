"""The manifest: columnar tables with the facts of every COG header, opened lazily and never changed in place."""

from __future__ import annotations

import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from cube.errors import ManifestError, ReadError, SelectionError, SourceError, SourceNotFoundError
from cube.grid import Grid, Levels, Window, brief_crs, step_text
from cube.io import loop
from cube.io.ranges import read_all
from cube.io.stores import absolute, is_url, join, local_path
from cube.manifest.contributions import Contribution, Contributions
from cube.manifest.facts import FactGroup, ImageGroup, SourceFacts, SourceLevel
from cube.manifest.schema import FACT_COLUMNS, IMAGE_COLUMNS, upgrade_sources, upgrade_tiles
from cube.manifest.tables import LazyRows, Part, PartFile, integers
from cube.settings import get_settings
from cube.spec import Band, CubeSpec, Fuse, Placing

__all__ = ["Contribution", "Manifest", "SourceFacts", "SourceLevel", "open_manifest", "parent", "snapshot_name"]

FORMAT = "cogcube-manifest"
SCHEMA = 3
READABLE_SCHEMAS = (1, 2, 3)
_MOST_NAMED = 8
POINTER = "manifest.json"


class Manifest:
    """One version of one cube's tables; safe to share between threads, nothing in it ever changes."""

    def __init__(self, url: str, version: str, snapshot: Mapping[str, Any]) -> None:
        cube = snapshot["cube"]
        self.url = url
        self.version = version
        self.schema: int = snapshot["schema"]
        """Of the release that wrote it."""
        self.name: str = snapshot["name"]
        self.attributes: dict[str, Any] = cube["attributes"]
        self.built: dict[str, Any] = cube.get("built", {})
        """What it was built from and with: the arguments of `build` that are not their default."""
        self.left_out: tuple[tuple[str, str], ...] = tuple((what, why) for what, why in cube.get("left_out", ()))
        """(item or href, why) of what `build` was given and is not part of the cube."""
        self.bands = tuple(Band.from_json(band) for band in cube["bands"])
        # Before schema 3, a cube had one grid, whose levels stood where its grids stand now.
        self.grids = tuple(map(Levels.from_json, cube.get("grids", [cube])))
        """The grids of its sources, one a pixel lattice."""
        self.parts = tuple(Part.from_json(part) for part in snapshot["parts"])
        """The Parquet files that hold the rows."""
        self._sources = [PartFile(join(url, part.sources), part.sources_bytes) for part in self.parts]
        self._tiles = [PartFile(join(url, part.tiles), part.tiles_bytes) for part in self.parts]
        self._facts = [LazyRows[dict[str, Any]](file, FACT_COLUMNS, FactGroup) for file in self._sources]
        self._images = [LazyRows[SourceLevel](file, IMAGE_COLUMNS, ImageGroup) for file in self._tiles]
        self._contributions = Contributions(self.parts, self._sources, self.bands)
        self._ungrouped = self._contributions
        self._places = self._contributions.places
        used = np.unique(self._places.grid).tolist()  # a grid may be there that all sources have left
        if not all(0 <= grid < len(self.grids) for grid in used):
            raise ValueError("its sources lie on grids that it does not describe")
        self._positions = {band.name: i for i, band in enumerate(self.bands)}
        self.times: np.ndarray | None = self._contributions.times
        """datetime64[us] (times,), or None in a cube without time."""
        self._ranks: dict[Fuse, np.ndarray] = {}
        said = cube.get("on")
        self.said = None if said is None else Placing.from_json(said)
        """On which pixels and dates the cube opens where nobody says so; None where nobody has said."""
        self.on = Placing(lattice=used[0] if len(used) == 1 else None)
        """On which pixels and dates it is open; see `placed`."""
        if self.said is not None:
            self._place(self.said)

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self._places.part)

    def __repr__(self) -> str:
        """Return what and which version it is."""
        return f"<Manifest {self.name!r} {self.version}: {len(self)} sources, {len(self.bands)} bands, {self.url}>"

    @property
    def levels(self) -> tuple[Grid, ...]:
        """The grid of each level, full resolution first.

        Raises:
            SelectionError: The sources lie on several grids.
        """
        return self._one_grid.grids

    @property
    def grid(self) -> Grid:
        """The full-resolution grid, under the same condition."""
        return self._one_grid.full

    @property
    def _one_grid(self) -> Levels:
        if self.on.grid is not None:
            # Half the resolution again and again, as often as there are overviews to read it from.
            factors = [2**i for i in range(max(len(each.grids) for each in self.grids))]
            coarser = tuple(self.on.grid.coarser(factor) for factor in factors)
            return Levels(grids=coarser, factors=tuple((factor, factor) for factor in factors))
        if self.on.lattice is not None:
            return self.grids[self.on.lattice]
        raise SelectionError(self._several(self.lattices([band.name for band in self.bands])))

    def _several(self, counts: Mapping[int, int]) -> str:
        """Return an error's text that lists grids, those of most sources first."""
        lines = []
        for i in sorted(counts, key=lambda i: -counts[i])[:_MOST_NAMED]:
            grid = self.grids[i].full
            corner = f"({grid.transform[2]:.12g}, {grid.transform[5]:.12g})"
            lines.append(
                f"  {counts[i]:,} in {brief_crs(grid.crs)}, pixels of {step_text(grid.transform)} from {corner}"
            )
        lines += [f"  and {len(counts) - _MOST_NAMED} more"] if len(counts) > _MOST_NAMED else []
        return (
            f"the sources of {self.name!r} lie on {len(counts)} grids:\n" + "\n".join(lines) + "\n"
            "say which pixels you want (crs= and resolution=, like=, or geobox=), or choose bands of one grid"
        )

    def require_lattice(self) -> int:
        """Return the position of the grid of the sources that the cube is on.

        Raises:
            SelectionError: It is on none, but on one that a user chose, or on nothing yet.
        """
        if self.on.grid is not None:
            raise SelectionError(
                f"{self.name!r} is on a grid of its own ({brief_crs(self.on.grid.crs)}, pixels of "
                f"{step_text(self.on.grid.transform)}), onto which its sources are warped; this needs their own pixels"
            )
        if self.on.lattice is None:
            raise SelectionError(self._several(self.lattices([band.name for band in self.bands])))
        return self.on.lattice

    def placed(self, on: Placing) -> Manifest:
        """Return the same cube on other pixels and dates; the tables are shared.

        Raises:
            ManifestError: There is no such grid of the sources.
        """
        found = copy.copy(self)
        found._place(on)  # noqa: SLF001 - its own
        return found

    def _place(self, on: Placing) -> None:
        if on.lattice is not None and not 0 <= on.lattice < len(self.grids):
            raise ManifestError(f"grid {on.lattice} of the sources was asked for; {self.name!r} has {len(self.grids)}")
        self.on, self._contributions = on, self._ungrouped
        if on.groupby == "id":
            self._contributions = self._ungrouped.by_item(self.column("item"))
        elif on.groupby == "solar_day":
            self._contributions = self._ungrouped.by_day(on.longitude)
        self.times = self._contributions.times

    def column(self, name: str) -> list[Any]:
        """Return a column of the sources table for all sources, in their order; loaded anew each time."""
        values: list[Any] = []
        for part, file in zip(self.parts, self._sources, strict=True):
            values += file.read([name])[name].take(pa.array(part.kept)).to_pylist()
        return values

    def ranks(self, fuse: Fuse) -> np.ndarray:
        """Return which source comes first where several give a pixel: the one of the lowest number, int64 (sources,).

        By time and then by item and href; backwards for "last"; later times first for "newest", and by the item's
        `eo:cloud_cover` before all that for "least_cloudy" (items that do not say come last).
        """
        if fuse not in self._ranks:
            times = self._ungrouped.first_times(len(self))
            names = [np.array(self.column(name), object).astype(str) for name in ("href", "item")]
            keys = [*names, -times if fuse == "newest" else times]
            if fuse == "least_cloudy":
                clouds = (json.loads(text or "{}").get("eo:cloud_cover") for text in self.column("properties"))
                keys.append(np.array([np.inf if each is None else float(each) for each in clouds]))
            ranks = np.empty(len(self), "int64")
            ranks[np.lexsort(keys)] = np.arange(len(self))
            self._ranks[fuse] = len(self) - 1 - ranks if fuse == "last" else ranks
        return self._ranks[fuse]

    def grid_at(self, level: int) -> Grid:
        """Return the grid of a level.

        Raises:
            SelectionError: The cube has no such level.
        """
        if not 0 <= level < len(self.levels):
            raise SelectionError(f"level {level} was asked for; {self.name!r} has levels 0 to {len(self.levels) - 1}")
        return self.levels[level]

    def band(self, name: str) -> Band:
        """Return the band of this name or alias; other capitals will do where they leave no doubt.

        Raises:
            SelectionError: There is none, or the alias means several.
        """
        for band in self.bands:
            if band.name == name:
                return band
        # Sen2Cor's SCL is "scl" in one catalogue and "SCL" in the next.
        found = [band for band in self.bands if name in band.aliases] or [
            band for band in self.bands if name.casefold() == band.name.casefold()
        ]
        if len(found) == 1:
            return found[0]
        names = ", ".join(band.name for band in self.bands)
        if found:
            raise SelectionError(f"{name!r} may mean {', '.join(band.name for band in found)}; ask for one of those")
        raise SelectionError(f"band {name!r} was asked for; {self.name!r} has {names}")

    def select(
        self, band: str, times: Sequence[int], window: Window, level: int, grid: int | None = None
    ) -> list[Contribution]:
        """Return what gives one band in a window of a level at some of the times, in the order of the sources.

        Args:
            band: Name of a band.
            times: Positions on the time axis; of no meaning in a cube without time.
            window: On the grid of `level`.
            level: 0 is full resolution.
            grid: Position in `grids`; the one that the cube is on where None. Sources on others are left out.

        Raises:
            SelectionError: No grid is given, and the cube is on none of its sources'.
        """
        grid = self.require_lattice() if grid is None else grid
        entries = self._contributions.find(self._positions[band], times)
        if len(self.grids) > 1:
            entries = entries[self._places.grid[self._contributions.owners(entries)] == grid]
        owner, places = self._contributions.owners(entries), self._places
        by_rows, by_columns = self.grids[grid].factors[level]
        top, left = places.row[owner] // by_rows, places.column[owner] // by_columns
        bottom, right = top + -(-places.height[owner] // by_rows), left + -(-places.width[owner] // by_columns)
        touched = (top < window.bottom) & (bottom > window.top) & (left < window.right) & (right > window.left)
        return self._contributions.get(entries[touched])

    def contributions(self, band: str, times: Sequence[int]) -> list[Contribution]:
        """Return what gives a band at some of the times, wherever it lies."""
        return self._contributions.get(self._contributions.find(self._positions[band], times))

    def lattices(self, bands: Sequence[str]) -> dict[int, int]:
        """Return how many sources of some bands lie on each of the grids, by position; those with none are left out."""
        grids, counts = np.unique(self._places.grid[self._owners(bands)], return_counts=True)
        return dict(zip(grids.tolist(), counts.tolist(), strict=True))

    def boxes(self, bands: Sequence[str]) -> dict[int, np.ndarray]:
        """Return where the sources of some bands lie on each grid, by its position: (sources, 4) of int64.

        The numbers are the top, bottom, left and right edges, in pixels of full resolution.
        """
        places, found = self._places, {}
        owners = self._owners(bands)
        for grid in np.unique(places.grid[owners]).tolist():
            mine = owners[places.grid[owners] == grid]
            top, left = places.row[mine], places.column[mine]
            found[grid] = np.stack([top, top + places.height[mine], left, left + places.width[mine]], axis=1)
        return found

    def _owners(self, bands: Sequence[str]) -> np.ndarray:
        entries = [self._contributions.find(self._positions[band], range(self.steps)) for band in bands]
        return np.unique(np.concatenate([self._contributions.owners(each) for each in entries]))

    def lattice_of(self, bands: Sequence[str]) -> int:
        """Return the position of the one grid that all sources of some bands lie on.

        Raises:
            SelectionError: They lie on several.
        """
        found = self.lattices(bands)
        if len(found) > 1:
            raise SelectionError(self._several(found))
        return next(iter(found), 0)

    @property
    def steps(self) -> int:
        """The number of dates; 1 in a cube without time."""
        return 1 if self.times is None else len(self.times)

    def grid_of(self, source: int) -> Grid:
        """Return the full-resolution grid that a source lies on."""
        return self.grids[int(self._places.grid[source])].full

    def load(self, sources: Sequence[int], level: int = 0) -> None:
        """Load at once what `facts`, `image` and `mask` of many sources will need of a level.

        They load it themselves otherwise, one row group after another: one round trip each where it is remote.
        """
        wanted, places = np.unique(np.asarray(sources, "int64")), self._places
        wanted = wanted[level < places.levels[wanted]]
        for part in np.unique(places.part[wanted]).tolist():
            mine = wanted[places.part[wanted] == part]
            self._facts[part].load(places.part_row[mine])
            images = places.tiles_row[mine] + level
            masks = (images + places.levels[mine])[places.masks[mine] == 1]
            self._images[part].load(np.concatenate([images, masks]))

    def facts(self, source: int, level: int = 0) -> SourceFacts:
        """Return one source's facts, its place on its own grid at `level`."""
        places = self._places
        by_rows, by_columns = self.grids[int(places.grid[source])].factors[level]
        values = dict(self._facts[int(places.part[source])].find(int(places.part_row[source])))
        name = values["href"]
        if local_path(self.url) is not None or is_url(name):
            href = join(parent(self.url), name)
        else:
            # Scanned on a disk, and then put on a store: a name that is to be quoted, another ETag and time, but the
            # same bytes.
            href = join(parent(self.url), name if Path(name).is_absolute() else quote(name))
            values["etag"] = values["last_modified"] = None
        if local_path(href) is not None and local_path(self.url) is None:
            raise ManifestError(f"{self.url} names {href}, a file of this machine, which a remote manifest must not")
        values["href"] = href
        return SourceFacts(
            row=int(places.row[source]) // by_rows,
            column=int(places.column[source]) // by_columns,
            levels=int(places.levels[source]),
            **values,
        )

    def image(self, source: int, level: int = 0) -> SourceLevel:
        """Return one source's tile table at a level; loads the part of the manifest that holds it.

        Raises:
            SourceError: The source has no such level.
        """
        return self._image(source, level, 0)

    def mask(self, source: int, level: int = 0) -> SourceLevel:
        """Return the tile table of the mask image of one source at a level.

        Raises:
            SourceError: The source has no such level, or no mask image.
        """
        if self._places.masks[source]:
            image = self._image(source, level, int(self._places.levels[source]))
            if image.width:  # nothing is written for a level that has none
                return image
        raise SourceError(self.facts(source).href, f"level {level} has no mask image")

    def _image(self, source: int, level: int, shift: int) -> SourceLevel:
        places = self._places
        if not 0 <= level < places.levels[source]:
            raise SourceError(
                self.facts(source).href, f"level {level} was asked for; it has {places.levels[source]}, counted from 0"
            )
        return self._images[int(places.part[source])].find(int(places.tiles_row[source]) + shift + level)

    def source_table(self) -> pa.Table:
        """Return every column of every source, in their order; loaded anew each time."""
        tables = [self.part_sources(i, part) for i, part in enumerate(self.parts)]
        return pa.concat_tables(tables).unify_dictionaries()

    def part_sources(self, number: int, part: Part) -> pa.Table:
        """Return every column of the sources of a part: those that are still of the cube, placed on its grids."""
        table = upgrade_sources(self._sources[number].read(), self.bands)
        if part.removed:
            table = table.take(pa.array(part.kept))
        for name, shift in zip(("row", "column"), part.shifts(integers(table["grid"])), strict=True):
            if shift.any():
                values = pa.array(integers(table[name]) + shift)
                table = table.set_column(table.schema.get_field_index(name), name, values)
        return table

    def part_tiles(self, number: int) -> pa.Table:
        """Return every column and row of the tiles table of a part, which `tiles_row` counts."""
        return upgrade_tiles(self._tiles[number].read())

    def part_rows(self, sources: Sequence[int]) -> dict[int, list[int]]:
        """Return the rows, by part, in which some sources stand."""
        wanted = np.unique(np.asarray(sources, "int64"))
        parts, rows = self._places.part[wanted], self._places.part_row[wanted]
        return {part: rows[parts == part].tolist() for part in np.unique(parts).tolist()}


def parent(url: str) -> str:
    """Return the folder that a manifest folder lies in."""
    return url.partition("?")[0].rstrip("/").rpartition("/")[0] or "/"


def snapshot_name(version: str) -> str:
    """Return the file that describes a version for as long as the folder lives."""
    return f"snapshot-{version}.json"


def open_manifest(url: str, version: str | None = None) -> Manifest:
    """Return a manifest, kept open by this process for as long as it is in use.

    Args:
        url: The manifest folder, as a path or a URL; blocks, so never call it on the I/O loop.
        version: The version to open; the current one where None.

    Raises:
        ManifestError: There is none, it is damaged, or a newer release wrote it.
        ReadError: The store refuses or fails.
    """
    url = absolute(url.rstrip("/"))
    if version is None:
        pointer = _read_json(url, POINTER)
        _require_format(url, pointer)
        version = pointer.get("version")
        if not isinstance(version, str) or not version.isalnum():
            raise ManifestError(f"{join(url, POINTER)} names no version; it was not written by cogcube or is damaged")
    return _open_version(url, version)


def open_spec(spec: CubeSpec) -> Manifest:
    """Return the manifest that a spec names, on the spec's pixels and dates; kept open as `open_manifest` does.

    Raises:
        ManifestError: As `open_manifest`.
        ReadError: As `open_manifest`.
    """
    manifest = open_manifest(spec.manifest, spec.version)
    return manifest if spec.on is None or spec.on == manifest.on else _open_on(spec.manifest, spec.version, spec.on)


@lru_cache(maxsize=16)
def _open_on(url: str, version: str, on: Placing) -> Manifest:
    return open_manifest(url, version).placed(on)


def _require_format(url: str, data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise ManifestError(f"{url} is not a cube's manifest: its format is {data.get('format')!r}, not {FORMAT!r}")
    if data.get("schema") not in READABLE_SCHEMAS:
        *most, last = map(str, READABLE_SCHEMAS)
        known = f"{', '.join(most)} and {last}"
        raise ManifestError(
            f"{url} has manifest schema {data.get('schema')!r}; this release reads {known}: upgrade cogcube"
        )


def _open_version(url: str, version: str) -> Manifest:
    key = (url, version)
    with _lock:
        found = _opened.get(key)
        if found is not None:
            _opened.move_to_end(key)
            return found
    snapshot = _read_json(url, snapshot_name(version))
    _require_format(url, snapshot)
    try:
        manifest = Manifest(url, version, snapshot)
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise ManifestError(f"{url} is damaged ({type(error).__name__}: {error}); build it again") from error
    with _lock:
        manifest = _opened.setdefault(key, manifest)
        while len(_opened) > get_settings().open_manifests:
            _opened.popitem(last=False)
    return manifest


_lock = threading.Lock()
_opened: OrderedDict[tuple[str, str], Manifest] = OrderedDict()


def _read_json(url: str, name: str) -> dict[str, Any]:
    href = join(url, name)
    try:
        text = loop.run(read_all(href, max_bytes=get_settings().max_manifest_json_bytes))
    except SourceNotFoundError:
        raise ManifestError(f"{url} holds no manifest ({name} is not there); build one with `cube build`") from None
    except ReadError as error:
        raise ManifestError(f"the manifest {url} cannot be read: {error.reason}") from None
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ManifestError(f"{href} is not JSON ({error}); it is damaged or half-written, build it again") from None
    if not isinstance(data, dict):
        raise ManifestError(f"{href} is not a manifest: a JSON object was expected")
    return data
