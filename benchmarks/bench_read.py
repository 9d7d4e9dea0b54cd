"""Reading pixels, against the floor."""

from __future__ import annotations

import numpy as np
import pytest

import cube
from benchmarks.processes import import_peer
from cube.grid import Window
from cube.reader import read_block


@pytest.fixture
def manifest(store, archive, tmp_path):
    urls = [f"{store.url}/{path.name}" for path in sorted(archive.glob("*.tif"))]
    return cube.build(urls, to=tmp_path / "bench.cube", pattern="{band}_{time:%Y%m%d}.tif")


@pytest.mark.parametrize("part", ["whole", "window"])
def test_read(store, manifest, part, against, benchmark):
    """All 12 COGs whole, or 1536 x 1536 pixels of each."""
    size = manifest.grid.width
    start, stop = (0, size) if part == "whole" else (size // 8, size // 8 + size * 3 // 8)
    window = Window(top=start, bottom=stop, left=start, right=stop)
    spec = cube.CubeSpec(manifest=manifest.url, version=manifest.version)
    bands, times = [band.name for band in manifest.bands], range(len(manifest.times))
    floor = import_peer("floor")
    files = [
        floor.Tiled(each["href"].rsplit("/", 1)[1], image.offsets[0], image.lengths[0], image.tile_width, "<u2")
        for i, each in enumerate(manifest.source_table().to_pylist())
        for image in [manifest.image(i)]
    ]
    connected = floor.connect(store.url)

    def ours():
        return read_block(spec, bands, times, window)

    def theirs():
        out = np.empty((len(files), *window.shape), "u2")
        floor.read(connected, [floor.Part(file, start, start, part) for file, part in zip(files, out, strict=True)])
        return out

    store.reset()
    mine = ours()
    counts = store.counts()
    # The manifest's order is band by band, date by date.
    assert np.array_equal(np.concatenate([mine[band] for band in bands]), theirs())
    benchmark.extra_info |= {"requests": counts.requests, "bytes": counts.bytes}
    against(ours, theirs)
