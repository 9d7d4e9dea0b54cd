"""The manifest: columnar tables with the facts of every COG header, opened lazily and never changed in place."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from cube.errors import ManifestError, ReadError, SelectionError, SourceError, SourceNotFoundError
from cube.grid import Grid, Window
from cube.io import loop
from cube.io.ranges import read_all
from cube.io.stores import absolute, is_url, join, local_path
from cube.manifest.contributions import Contribution, Contributions
from cube.manifest.facts import FactGroup, ImageGroup, SourceFacts, SourceLevel
from cube.manifest.schema import FACT_COLUMNS, IMAGE_COLUMNS, upgrade_sources, upgrade_tiles
from cube.manifest.tables import LazyRows, Part, PartFile, integers
from cube.settings import get_settings
from cube.spec import Band

__all__ = ["Contribution", "Manifest", "SourceFacts", "SourceLevel", "open_manifest", "parent", "snapshot_name"]

FORMAT = "cogcube-manifest"
SCHEMA = 2
READABLE_SCHEMAS = (1, 2)
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
        self.levels = tuple(Grid.from_json(level) for level in cube["levels"])
        self.parts = tuple(Part.from_json(part) for part in snapshot["parts"])
        """The Parquet files that hold the rows."""
        self._factors: list[list[int]] = cube["factors"]
        self._sources = [PartFile(join(url, part.sources), part.sources_bytes) for part in self.parts]
        self._tiles = [PartFile(join(url, part.tiles), part.tiles_bytes) for part in self.parts]
        self._facts = [LazyRows[dict[str, Any]](file, FACT_COLUMNS, FactGroup) for file in self._sources]
        self._images = [LazyRows[SourceLevel](file, IMAGE_COLUMNS, ImageGroup) for file in self._tiles]
        self._contributions = Contributions(self.parts, self._sources, self.bands)
        self._places = self._contributions.places
        self._positions = {band.name: i for i, band in enumerate(self.bands)}
        self.times: np.ndarray | None = self._contributions.times
        """datetime64[us] (times,), or None in a cube without time."""

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self._places.part)

    def __repr__(self) -> str:
        """Return what and which version it is."""
        return f"<Manifest {self.name!r} {self.version}: {len(self)} sources, {len(self.bands)} bands, {self.url}>"

    @property
    def grid(self) -> Grid:
        """The full-resolution grid."""
        return self.levels[0]

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

    def select(self, band: str, times: Sequence[int], window: Window, level: int) -> list[Contribution]:
        """Return what gives one band in a window of a level at some of the times, in the order of the sources.

        Args:
            band: Name of a band.
            times: Positions on the time axis; of no meaning in a cube without time.
            window: On the grid of `level`.
            level: 0 is full resolution.
        """
        entries = self._contributions.find(self._positions[band], times)
        owner, places = self._contributions.owners(entries), self._places
        by_rows, by_columns = self._factors[level]
        top, left = places.row[owner] // by_rows, places.column[owner] // by_columns
        bottom, right = top + -(-places.height[owner] // by_rows), left + -(-places.width[owner] // by_columns)
        touched = (top < window.bottom) & (bottom > window.top) & (left < window.right) & (right > window.left)
        return self._contributions.get(entries[touched])

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
        """Return one source's facts, its place on the grid of `level`."""
        by_rows, by_columns = self._factors[level]
        places = self._places
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
        """Return every column of the sources of a part: those that are still of the cube, placed on its grid."""
        table = upgrade_sources(self._sources[number].read(), self.bands)
        if part.removed:
            table = table.take(pa.array(part.kept))
        for name, shift in (("row", part.row_offset), ("column", part.column_offset)):
            if shift:
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


def _require_format(url: str, data: Mapping[str, Any]) -> None:
    if data.get("format") != FORMAT:
        raise ManifestError(f"{url} is not a cube's manifest: its format is {data.get('format')!r}, not {FORMAT!r}")
    if data.get("schema") not in READABLE_SCHEMAS:
        known = " and ".join(map(str, READABLE_SCHEMAS))
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
