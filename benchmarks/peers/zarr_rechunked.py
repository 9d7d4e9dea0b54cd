"""Zarr as it would be rewritten for the analysis: LZ4, and chunks that hold all dates."""

from __future__ import annotations

from zarr_reader import ZarrPeer, threads

PEER = ZarrPeer(
    "zarr_rechunked",
    "Zarr v2 of Blosc LZ4 with shuffle, in chunks of all dates and some 3 MB",
    threads(),
)
