"""References in groups, each of sources that are alike: for cubes that one group cannot describe."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from cube.grid import Grid, Window
from cube.manifest.open import Manifest
from cube.references.plan import References, SourceLook, Uniform, plan_band, render
from cube.selection import crop
from cube.zarr_metadata import root_attributes


def plan_split(manifest: Manifest, *, level: int = 0, dense: bool = False) -> References:
    """Return references in groups "0", "1" and so on, each of sources that one array a band can hold; reads no pixel.

    Sources of whole tiles on one lattice stay together, and so do those of one place at several dates, as long as their
    encoding is the same; scale and offset are those of the files.

    Args:
        manifest: The cube; its sources may lie on several grids and overlap.
        level: 0 is full resolution.
        dense: See `plan_references`.

    Raises:
        ReferencesError: A source cannot be described whatever it is beside; names a band, a file and the reason.
    """
    groups = _uniform_groups(manifest, level)
    attributes = root_attributes(manifest) | {
        "groups": f"{len(groups)}, each of sources with one grid and one encoding"
    }
    found: References = {}
    documents: dict[str, Any] = {}
    for number, group in enumerate(groups):
        references = render(group, root_attributes(manifest), dense=dense)
        documents |= {
            f"{number}/{key}": value
            for key, value in json.loads(references.pop(".zmetadata"))["metadata"].items()  # type: ignore[arg-type]
        }
        found |= {f"{number}/{key}": value for key, value in references.items()}
    documents |= {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}
    consolidated = {"zarr_consolidated_format": 1, "metadata": documents}
    rendered = {".zgroup": documents[".zgroup"], ".zattrs": attributes, ".zmetadata": consolidated}
    return {key: json.dumps(value).encode() for key, value in rendered.items()} | found


def _uniform_groups(manifest: Manifest, level: int) -> list[Uniform]:
    """Return the sources of a cube in groups of one grid and one encoding a band, those of one place together."""
    members: dict[tuple[Any, ...], dict[str, list[SourceLook]]] = {}
    for band in manifest.bands:
        encodings: dict[tuple[Any, ...], dict[tuple[Any, ...], int]] = {}
        taken: set[tuple[Any, ...]] = set()
        for found in manifest.contributions(band.name, range(manifest.steps)):
            source = SourceLook(manifest, found, level, found.time)
            place = manifest.grid_of(found.source), source.extent
            known = encodings.setdefault(place, {})
            variant = known.setdefault(source.encoding, len(known))
            tiles = [(source.time, *tile) for tile in _tiles(source)]
            layer = 0
            while any((place, variant, layer, *tile) in taken for tile in tiles):
                layer += 1  # of sources that overlap, each is on its own
            taken |= {(place, variant, layer, *tile) for tile in tiles}
            members.setdefault((*place, variant, layer), {}).setdefault(band.name, []).append(source)
    return [_uniform(manifest, level, key[0], of_band) for key, of_band in members.items()]


def _uniform(manifest: Manifest, level: int, grid: Grid, of_band: Mapping[str, list[SourceLook]]) -> Uniform:
    every = [source for sources in of_band.values() for source in sources]
    top, left = min(each.facts.row for each in every), min(each.facts.column for each in every)
    bottom = max(each.facts.row + each.image.height for each in every)
    right = max(each.facts.column + each.image.width for each in every)
    levels = next(levels for levels in manifest.grids if levels.full == grid)
    own = crop(levels.grids[level], Window(top=top, bottom=bottom, left=left, right=right))
    steps = sorted({each.time for each in every})
    times = None if manifest.times is None else manifest.times[steps]
    for each in every:
        each.time = steps.index(each.time)
    bands = [
        plan_band(sources[0].stored(manifest.band(name)), sources, own, times, (top, left))
        for name, sources in of_band.items()
    ]
    return Uniform(grid=own, times=times, bands=bands)


def _tiles(source: SourceLook) -> Iterator[tuple[int, int]]:
    """Yield rows and columns of a source's tiles, counted from the corner of its grid (from its own where uneven)."""
    image, (down, across) = source.image, (0, 0)
    if source.extent is None:
        down, across = source.facts.row // image.tile_height, source.facts.column // image.tile_width
    rows, columns = -(-image.height // image.tile_height), -(-image.width // image.tile_width)
    return ((down + j, across + i) for j, i in itertools.product(range(rows), range(columns)))
