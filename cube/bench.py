"""The benchmark's reads on a user's own archive and network: how long, how many requests, how near to the network."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cube.drift import version_of
from cube.errors import CubeError, ReadError, SelectionError
from cube.grid import Grid, Window
from cube.io import loop
from cube.io.ranges import byte_budget, read_range
from cube.io.stores import sign
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.plan import SourceRead, plan_read, plan_source_requests
from cube.reader import read_block
from cube.selection import crop
from cube.spec import CubeSpec
from cube.stac.items import to_pystac

WINDOW_PIXELS = 1536
_WINDOW_DATES = 6
_COLUMN_PIXELS = 512
_WINDOW_BANDS = 2
PEERS = ("odc-stac",)

type Answer = dict[str, np.ndarray]
"""(time, y, x) of stored numbers by band."""
type Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One read."""

    name: str
    bands: tuple[str, ...]
    times: tuple[int, ...]
    """Positions on the cube's time axis."""
    window: Window
    """On the grid at full resolution."""

    def __str__(self) -> str:
        rows, columns = self.window.shape
        dates = f"{len(self.times)} date{'s' if len(self.times) != 1 else ''}"
        place = f"row {self.window.top}, column {self.window.left}"
        return f"{rows} x {columns} pixels at {place}, {dates}, {' and '.join(self.bands)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one reader did one workload."""

    workload: str
    what: str
    """The workload in words."""
    reader: str
    first_s: float | None = None
    """Of the first run: connections are opened, and parts of the manifest read."""
    seconds: float | None = None
    """Median of the runs after it; None for what happens once."""
    requests: int | None = None
    """None where the reader does not tell."""
    bytes: int | None = None
    fetch_s: float | None = None
    """Median of fetching the same requests and decoding nothing: what the network takes."""
    problem: str | None = None
    """Why there are no times, or how the answer differs from cogcube's."""

    @property
    def ratio(self) -> float | None:
        """How many times the fetch alone a read takes."""
        return self.seconds / self.fetch_s if self.seconds and self.fetch_s else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        return asdict(self) | {"ratio": self.ratio}


def time_opening(open_it: Callable[[], Manifest]) -> tuple[Manifest, Row]:
    """Open a cube, for the first time in this process, and return it with what that took."""
    with trace() as asked:
        began = time.perf_counter()
        manifest = open_it()
        seconds = time.perf_counter() - began
    what = f"the cube opened: {len(manifest):,} sources"
    opened = Row(
        workload="open", what=what, reader="cogcube", first_s=seconds, requests=asked.requests, bytes=asked.bytes
    )
    return manifest, opened


def plan_workloads(
    manifest: Manifest, *, bands: Sequence[str] | None = None, seed: int = 0, max_bytes: int | None = None
) -> list[Workload]:
    """Return the reads of a cube, at a random place that has data: the same place for the same seed.

    Args:
        manifest: The cube.
        bands: Names of bands; the first two where None.
        seed: Of the place.
        max_bytes: The most that one run of a workload may fetch: it gets fewer dates, then fewer pixels, until it does.

    Raises:
        SelectionError: A band that the cube does not have.
    """
    names = tuple(manifest.band(name).name for name in bands) if bands else ()
    names = names or tuple(band.name for band in manifest.bands[:_WINDOW_BANDS])
    everything = tuple(range(1 if manifest.times is None else len(manifest.times)))
    row, column = _random_place(manifest, names[0], everything, np.random.default_rng(seed))
    point = Window(top=row, bottom=row + 1, left=column, right=column + 1)
    dates = tuple(sorted({found.time for found in manifest.select(names[0], everything, point, 0)}))
    planned = [
        Workload(name="series", bands=names[:1], times=dates, window=point),
        Workload(
            name="window", bands=names, times=dates[-_WINDOW_DATES:], window=_around(manifest, point, WINDOW_PIXELS)
        ),
        Workload(name="column", bands=names[:1], times=dates, window=_around(manifest, point, _COLUMN_PIXELS)),
    ]
    return planned if max_bytes is None else [_limit(manifest, each, max_bytes) for each in planned]


def measure(
    manifest: Manifest,
    workloads: Sequence[Workload],
    *,
    peer: str | None = None,
    rounds: int = 3,
    progress: Progress | None = None,
) -> list[Row]:
    """Run workloads in turn: the fetch alone, cogcube, and a peer; return a row a workload and reader.

    Args:
        manifest: The cube.
        workloads: See `plan_workloads`.
        peer: One of `PEERS`; none where None.
        rounds: Runs of each after the first.
        progress: Called with (done, total).

    Raises:
        CubeError: The peer is not known or not installed, or a source cannot be read.
    """
    load = None if peer is None else _find_peer(peer)
    rows = []
    for number, workload in enumerate(workloads):
        if progress is not None:
            progress(number, len(workloads))
        rows += _measure(manifest, workload, peer, load, rounds)
    if progress is not None:
        progress(len(workloads), len(workloads))
    return rows


def difference(found: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> str | None:
    """Return in words how an answer differs from ours, NaN being equal to NaN; None where it does not."""
    for band, wanted in ours.items():
        other = found[band]
        if other.shape != wanted.shape:
            return f"{band}: {other.shape} numbers, where cogcube has {wanted.shape}"
        differ = other != wanted
        if wanted.dtype.kind == "f" and other.dtype.kind == "f":
            differ &= ~(np.isnan(other) & np.isnan(wanted))
        if differ.any():
            at = tuple(int(n) for n in np.argwhere(differ)[0])
            where = f"date {at[0]}, row {at[1]}, column {at[2]}"
            count = f"{np.count_nonzero(differ):,} of {differ.size:,} numbers"
            return f"{band}: {count} differ, first at {where}: {other[at]}, where cogcube has {wanted[at]}"
    return None


def _measure(
    manifest: Manifest, workload: Workload, peer: str | None, load: Callable[..., Any] | None, rounds: int
) -> list[Row]:
    spec = CubeSpec(manifest=manifest.url, version=manifest.version)
    reads = plan_read(manifest, workload.bands, workload.times, workload.window, 0).sources
    whole_plan = all(read.facts.path == "fast" for read in reads)  # GDAL alone knows what it asks

    def ours() -> Answer:
        return read_block(spec, workload.bands, workload.times, workload.window)

    with trace() as asked:
        first_s, wanted = _timed(ours)
    row = Row(workload=workload.name, what=str(workload), reader="cogcube", first_s=first_s)
    row = replace(row, requests=asked.requests, bytes=asked.bytes)
    if load is None or peer is None:
        theirs, other = None, None
    else:
        theirs, other = _try_peer(manifest, workload, row, peer, load, wanted)
    fetched, read, loaded = [], [], []
    for _ in range(rounds):
        if whole_plan:
            fetched.append(_timed(lambda: fetch(spec, reads))[0])
        read.append(_timed(ours)[0])
        if theirs is not None:
            loaded.append(_timed(theirs)[0])
    fetch_s = statistics.median(fetched) if fetched else None
    rows = [replace(row, seconds=statistics.median(read), fetch_s=fetch_s)]
    if other is not None:
        rows.append(replace(other, seconds=statistics.median(loaded) if loaded else None))
    return rows


def _try_peer(
    manifest: Manifest, workload: Workload, row: Row, peer: str, load: Callable[..., Any], wanted: Answer
) -> tuple[Callable[[], Answer] | None, Row]:
    """Run a peer for the first time; return it, or None where it fails, and its row."""
    row = Row(workload=row.workload, what=row.what, reader=peer)
    try:
        theirs = load(manifest, workload)
        first_s, found = _timed(theirs)
    except Exception as error:  # noqa: BLE001 - whatever another library raises is a finding, and ours go on
        return None, replace(row, problem=f"{type(error).__name__}: {error}")
    return theirs, replace(row, first_s=first_s, problem=difference(found, wanted))


def _timed[T](work: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def fetch(spec: CubeSpec, reads: Sequence[SourceRead]) -> int:
    """Fetch what a read would, decode nothing, and return how many bytes came."""
    wanted = [(read.facts, request) for read in reads for request, _ in plan_source_requests(read)]

    async def one(facts: Any, start: int, stop: int) -> int:
        async with byte_budget().hold(stop - start):
            signed = sign(facts.href, spec.patch_url)
            return len(await read_range(facts.href, start, stop, signed=signed, version=version_of(facts)))

    async def everything() -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(facts, request.start, request.stop)) for facts, request in wanted]
        return sum(task.result() for task in tasks)

    try:
        return loop.run(everything())
    except* ReadError as errors:
        raise errors.exceptions[0] from None


def _random_place(manifest: Manifest, band: str, times: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    """Return a row and a column of the grid that a source of a band covers."""
    grid = manifest.grid
    found = manifest.select(band, times, Window(top=0, bottom=grid.height, left=0, right=grid.width), 0)
    if not found:
        raise SelectionError(f"{manifest.name!r} has no source of {band}")
    source = found[int(rng.integers(len(found)))].source
    facts, image = manifest.facts(source), manifest.image(source)
    row = int(np.clip(facts.row + rng.integers(image.height), 0, grid.height - 1))
    column = int(np.clip(facts.column + rng.integers(image.width), 0, grid.width - 1))
    return row, column


def _around(manifest: Manifest, point: Window, pixels: int) -> Window:
    """Return a square around a point, moved and cut to lie inside of the grid."""
    height, width = manifest.grid.shape
    top = max(0, min(point.top - pixels // 2, height - pixels))
    left = max(0, min(point.left - pixels // 2, width - pixels))
    return Window(top=top, bottom=min(height, top + pixels), left=left, right=min(width, left + pixels))


def _limit(manifest: Manifest, workload: Workload, max_bytes: int) -> Workload:
    while _planned_bytes(manifest, workload) > max_bytes:
        if len(workload.times) > 1:
            workload = replace(workload, times=workload.times[::2])
            continue
        rows, columns = workload.window.shape
        if rows * columns == 1:
            break  # one tile: nothing less can be read
        window = workload.window
        half = Window(
            top=window.top,
            bottom=window.top + max(1, rows // 2),
            left=window.left,
            right=window.left + max(1, columns // 2),
        )
        workload = replace(workload, window=half)
    return workload


def _planned_bytes(manifest: Manifest, workload: Workload) -> int:
    plan = plan_read(manifest, workload.bands, workload.times, workload.window, 0)
    return sum(request.stop - request.start for read in plan.sources for request, _ in plan_source_requests(read))


def _find_peer(name: str) -> Callable[[Manifest, Workload], Callable[[], Answer]]:
    if name not in PEERS:
        raise CubeError(f"peer {name!r} was asked for; there is {', '.join(PEERS)}")
    try:
        import odc.stac  # noqa: F401
    except ImportError as error:
        missing = error.name or "odc.stac"
        raise CubeError(f"{missing} is not installed, which --peer odc-stac needs: pip install odc-stac") from None
    return _odc_stac


def _odc_stac(manifest: Manifest, workload: Workload) -> Callable[[], Answer]:
    """Return a load of the same pixels by odc-stac, in its settings for clouds, with as many threads as help it."""
    import odc.stac

    items = _items(manifest, workload)
    geobox = crop(manifest.grid, workload.window).geobox
    threads = min(64, 8 * (os.cpu_count() or 1))
    odc.stac.configure_rio(cloud_defaults=True)
    kinds = {band: manifest.band(band) for band in workload.bands}

    def load() -> Answer:
        with ThreadPoolExecutor(threads) as pool:
            found = odc.stac.load(items, bands=list(workload.bands), geobox=geobox, groupby="time", pool=pool)
        return {band: found[band].values.astype(kinds[band].dtype, copy=False) for band in workload.bands}

    return load


def _items(manifest: Manifest, workload: Workload) -> list[Any]:
    """Return the sources of a workload as STAC Items: one for the bands that share a date and a place."""
    if manifest.times is None:
        raise SelectionError("layers without time cannot be put as STAC Items, which have one")
    assets: dict[tuple[int, Window, int], dict[str, Any]] = {}
    for band in workload.bands:
        kind, seen = manifest.band(band), Counter[tuple[int, Window]]()
        for found in manifest.select(band, workload.times, workload.window, 0):
            facts, image = manifest.facts(found.source), manifest.image(found.source)
            if facts.samples > 1:
                raise SelectionError(
                    f"{facts.href} has several bands, of which odc-stac would name none as the cube does"
                )
            bottom, right = facts.row + image.height, facts.column + image.width
            place = Window(top=facts.row, bottom=bottom, left=facts.column, right=right)
            nodata = found.nodata if found.nodata is not None else kind.nodata
            about = {"data_type": kind.dtype} | ({} if nodata is None else {"nodata": nodata})
            asset = {"href": facts.href, "roles": ["data"], "raster:bands": [about] * facts.samples}
            assets.setdefault((found.time, place, seen[found.time, place]), {})[band] = asset
            seen[found.time, place] += 1
    # odc-stac takes what bands there are from the first Item.
    ordered = sorted(assets.items(), key=lambda each: -len(each[1]))
    return to_pystac(
        _item(manifest, f"item-{number}", key[0], crop(manifest.grid, key[1]), found)
        for number, (key, found) in enumerate(ordered)
    )


def _item(manifest: Manifest, name: str, at: int, grid: Grid, assets: dict[str, Any]) -> dict[str, Any]:
    footprint = grid.geobox.extent.to_crs("EPSG:4326")
    code = grid.crs if grid.crs.upper().startswith("EPSG:") else None
    crs = {"proj:epsg": int(code.split(":")[1])} if code else {"proj:epsg": None, "proj:wkt2": grid.crs}
    shape = {"proj:shape": list(grid.shape), "proj:transform": list(grid.transform)}
    assert manifest.times is not None  # noqa: S101 - the caller refuses layers
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
        ],
        "id": name,
        "geometry": footprint.json,
        "bbox": list(footprint.boundingbox.bbox),
        "properties": {"datetime": f"{manifest.times[at]}Z", **shape, **crs},
        "links": [],
        "assets": assets,
    }
