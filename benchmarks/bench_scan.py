"""Scanning headers: how long until an archive is known."""

from __future__ import annotations

import pytest

from benchmarks.processes import import_peer
from cube.scan import scan_sources
from cube.source import Source
from cube.testing import ObjectStore


@pytest.fixture
def many_store(many, latency_ms):
    with ObjectStore(many, latency_s=latency_ms / 1e3) as running:
        yield running


def test_scan(many, many_store, against, benchmark):
    """10,000 COGs, against one plain 32 kB request each with 256 in flight."""
    paths = sorted(path.name for path in many.glob("*.tif"))
    sources = [Source(href=f"{many_store.url}/{path}", item=path) for path in paths]
    many_store.reset()
    scanned, errors = scan_sources(sources)
    assert (len(scanned), errors) == (len(paths), [])
    counts = many_store.counts()
    assert counts.requests == len(paths)
    benchmark.extra_info |= {"requests": counts.requests, "bytes": counts.bytes}
    floor = import_peer("floor")
    theirs = floor.connect(many_store.url)
    against(lambda: scan_sources(sources), lambda: floor.scan(theirs, paths), rounds=5)
