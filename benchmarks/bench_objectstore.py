"""The object store's own ceiling: what it can do at most, so that no other benchmark mistakes it for a reader's."""

from __future__ import annotations

import pytest

from cube.testing import ObjectStore
from cube.testing.objectstore.ceiling import measure

SECONDS = 2.0


@pytest.mark.parametrize("body_bytes", [1_000, 100_000, 1_000_000])
def test_ceiling(full, benchmark, tmp_path, body_bytes):
    """64 connections that do nothing but read, for two seconds."""
    (tmp_path / "object").write_bytes(bytes(body_bytes))
    with ObjectStore(tmp_path) as store:

        def run():
            return measure(
                store.url,
                "object",
                body_bytes,
                store_cpu_s=lambda: store.counts().cpu_s,
                seconds=SECONDS if full else 0.05,
            )

        found = benchmark.pedantic(run, rounds=3 if full else 1)
        counts = store.counts()
    assert counts.faults == {}
    assert counts.requests >= found.requests_per_s * (SECONDS if full else 0.05)
    benchmark.extra_info |= {
        "requests_per_s": found.requests_per_s,
        "mb_per_s": found.requests_per_s * body_bytes / 1e6,
        "store_cpu_us": found.store_cpu_s * 1e6,
        "client_share": found.client_share,
    }
