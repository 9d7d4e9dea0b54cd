"""The manifest of a large archive: bytes a tile, time and memory to open, time to select."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from cube.grid import Grid, Levels, Window
from cube.manifest.open import open_manifest
from cube.manifest.snapshot import Member, write_manifest
from cube.scan import ScannedSource
from cube.source import Source, SourceBand
from cube.spec import Band
from cube.tiff.header import Header, Level

BANDS = ("blue", "green", "nir", "red")
EDGE, TILE = 10980, 1024  # a Sentinel-2 scene: 11 x 11 tiles

# In a process of its own: nothing is open, and the memory is what opening takes beyond the imports.
OPEN = """
import json, sys, time
import cube.reader
from cube.manifest.open import open_manifest
def resident():
    import psutil
    return psutil.Process().memory_info().rss
before, began = resident(), time.perf_counter()
manifest = open_manifest(sys.argv[1])
seconds = time.perf_counter() - began
print(json.dumps({"open_s": seconds, "open_MB": (resident() - before) / 1e6, "sources": len(manifest)}))
"""


def make_members(places: int, dates: int) -> list[Member]:
    """Return `places` x `places` scenes of all bands at all dates; tiles as long as those of real scenes."""
    rng = np.random.default_rng(0)
    tiles = -(-EDGE // TILE)
    shape = (1, tiles, tiles)
    days = np.datetime64("2020-01-01T10:00", "us") + np.arange(dates) * np.timedelta64(5, "D")
    members = []
    for i in range(places * places):
        row, column = i // places * EDGE, i % places * EDGE
        transform = Affine(10, 0, 300000 + column * 10, 0, -10, 5000040 - row * 10)
        for date, day in enumerate(days):
            for band in BANDS:
                lengths = rng.integers(700_000, 1_700_000, shape).astype("u8")  # about 1.1 bytes a pixel
                offsets = 1_000 + np.cumsum(lengths + 8).reshape(shape).astype("u8") - lengths
                level = Level(
                    width=EDGE,
                    height=EDGE,
                    tile_width=TILE,
                    tile_height=TILE,
                    compression=8,
                    predictor=2,
                    offsets=offsets,
                    lengths=lengths,
                    strips=False,
                    tables=None,
                    mask=None,
                )
                scene = f"S2B_{i:04}_{day.item():%Y%m%d}_0_L2A"
                source = Source(
                    href=f"https://sentinel-cogs.example.com/sentinel-s2-l2a-cogs/{i}/{day.item():%Y/%m}/{scene}/{band}.tif",
                    item=scene,
                    collection="sentinel-2-l2a",
                    asset=band,
                    time=day,
                    properties={"datetime": str(day), "eo:cloud_cover": round(date * 7.3 % 100, 2)},
                )
                scanned = ScannedSource(
                    source=source,
                    header=make_header(level, transform),
                    size=int(offsets.max()) + 2_000_000,
                    etag=rng.bytes(16).hex(),
                    last_modified=(day + np.timedelta64(1, "D")).item(),
                )
                bands = (SourceBand(name=band, sample=0, nodata=0, scale=0.0001, offset=-0.1),)
                members.append(Member(scanned=scanned, bands=bands, row=row, column=column))
    return members


def make_header(level: Level, transform: Affine) -> Header:
    return Header(
        dtype=np.dtype("uint16"),
        byteorder="<",
        samples=1,
        interleave="band",
        photometric=1,
        levels=(level,),
        transform=transform,
        geokeys=None,
        crs_wkt=None,
        nodata=0,
        scales=(1.0,),
        offsets=(0.0,),
        descriptions=(None,),
        units=(None,),
        alpha=None,
        validity=None,
        colormap=None,
        metadata={},
        needs_gdal=None,
        refusal=None,
    )


@pytest.fixture(scope="module")
def large(full, tmp_path_factory):
    """100,000 sources of 121 tiles each: 5 x 5 places, 1000 dates, 4 bands."""
    places, dates = (5, 1000) if full else (2, 20)
    edge = places * EDGE
    grid = Grid(crs="EPSG:32633", transform=(10.0, 0.0, 300000.0, 0.0, -10.0, 5000040.0), width=edge, height=edge)
    members = make_members(places, dates)
    folder = tmp_path_factory.mktemp("large") / "large.cube"
    write_manifest(
        str(folder),
        name="large",
        members=members,
        bands=[Band(name=name, dtype="uint16", nodata=0, scale=0.0001, offset=-0.1) for name in BANDS],
        grids=[Levels(grids=(grid,), factors=((1, 1),))],
        attributes={},
    )
    return folder


def open_elsewhere(folder: Path) -> dict[str, float]:
    found = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def test_size(large, benchmark):
    """Bytes on disk a tile, all files counted."""
    tiles = len(open_manifest(str(large))) * (-(-EDGE // TILE)) ** 2
    size = benchmark.pedantic(lambda: sum(path.stat().st_size for path in large.iterdir()), rounds=1)
    benchmark.extra_info |= {"tiles": tiles, "bytes_a_tile": size / tiles}
    assert size <= 20 * tiles


def test_open(large, benchmark):
    """Opened by a process that has nothing of it yet."""
    found = [open_elsewhere(large)]
    benchmark.pedantic(lambda: found.append(open_elsewhere(large)), rounds=3)
    benchmark.extra_info |= {name: float(np.median([each[name] for each in found])) for name in found[0]}
    assert benchmark.extra_info["open_MB"] <= 200


@pytest.mark.parametrize("what", ["series", "date"])
def test_select(large, benchmark, full, what):
    """The plan's questions about 500 sources: those of one place over time, or of all places at some dates."""
    window, dates = Window(top=2000, bottom=2100, left=3000, right=3100), range(125)
    if what == "date":
        window, dates = Window(top=0, bottom=5 * EDGE, left=0, right=5 * EDGE), range(0, 1000, 200)
    if not full:
        window, dates = Window(top=0, bottom=10, left=0, right=10), range(5)

    def opened():
        code = SELECT.format(dates=list(dates), window=window)
        found = subprocess.run([sys.executable, "-c", code, str(large)], capture_output=True, text=True, check=True)
        return json.loads(found.stdout)

    found = [benchmark.pedantic(opened, rounds=1)]
    benchmark.extra_info |= found[0]
    assert found[0]["sources"] == (500 if full else 20)


SELECT = """
import json, sys, time
import cube.reader
from cube.grid import Window
from cube.manifest.open import open_manifest
manifest = open_manifest(sys.argv[1])
def ask():
    began = time.perf_counter()
    found = [each for band in manifest.bands for each in manifest.select(band.name, {dates}, {window}, 0)]
    sources = sorted({{each.source for each in found}})
    manifest.load(sources, 0)
    tiles = sum(manifest.image(source).offsets.size for source in sources if manifest.facts(source).path == "fast")
    assert tiles == 121 * len(sources)
    return time.perf_counter() - began, len(sources)
(first, sources), (again, _) = ask(), ask()
print(json.dumps({{"first_s": first, "again_s": again, "sources": sources}}))
"""
