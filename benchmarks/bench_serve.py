"""Serving chunks over HTTP: read from COGs, and from the server's cache."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import numpy as np
import obstore
import pytest
import xarray as xr
from obstore.store import HTTPStore

import cube
from cube.catalog import add_entry, manifest_entry

CLIENTS = 16


@pytest.fixture
def server(store, archive, tmp_path):
    """`cube serve` as a process of its own, over the archive behind the store; yields its URL."""
    urls = [f"{store.url}/{path.name}" for path in sorted(archive.glob("*.tif"))]
    cube.build(urls, to=tmp_path / "bench.cube", pattern="{band}_{time:%Y%m%d}.tif")
    add_entry(tmp_path / "catalog.yaml", manifest_entry("bench", tmp_path / "bench.cube"))
    command = [sys.executable, "-P", "-m", "cube", "serve", str(tmp_path / "catalog.yaml"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield next(word for word in process.stdout.readline().split() if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stdout.close()


def chunk_keys(url: str) -> list[str]:
    """Return the key of every chunk of nir."""
    nir = xr.open_dataset(url, chunks={}).nir.data
    return [f"datasets/bench.zarr/nir/c/{t}/{y}/{x}" for t, y, x in np.ndindex(nir.numblocks)]


def fetch(url: str, keys: list[str]) -> int:
    """Fetch every key, `CLIENTS` at once, and return the bytes that came."""
    http = HTTPStore.from_url(url, client_options={"allow_http": True})
    gate = asyncio.Semaphore(CLIENTS)

    async def one(key: str) -> int:
        async with gate:
            result = await obstore.get_async(http, key)
            return len(await result.bytes_async())

    async def everything() -> int:
        return sum(await asyncio.gather(*[one(key) for key in keys]))

    return asyncio.run(everything())


def test_serve_cold(server, store, full, benchmark):
    """Every chunk of one band once: read, decoded, placed, encoded, sent."""
    keys = chunk_keys(f"{server}/datasets/bench.zarr")
    store.reset()
    benchmark.pedantic(fetch, (server, keys), rounds=1)
    counts = store.counts()
    assert counts.requests >= len(keys)
    benchmark.extra_info |= {"chunks": len(keys), "requests": counts.requests, "bytes": counts.bytes}
    if full:
        benchmark.extra_info["chunks_per_s"] = len(keys) / benchmark.stats.stats.median


def test_serve_cached(server, store, full, benchmark):
    """The same chunks again and again: the server's cache, nothing asked of the store."""
    keys = chunk_keys(f"{server}/datasets/bench.zarr")[:8]
    fetch(server, keys)
    store.reset()
    many = keys * (100 if full else 2)
    benchmark.pedantic(fetch, (server, many), rounds=5 if full else 1)
    assert store.counts().requests == 0
    if full:
        benchmark.extra_info["chunks_per_s"] = len(many) / benchmark.stats.stats.median
