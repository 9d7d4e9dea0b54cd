"""Plain Zarr of the same data, in the same codec and chunks: "if only it were rewritten"."""

from __future__ import annotations

from zarr_reader import ZarrPeer, threads

PEER = ZarrPeer(
    "zarr_copy",
    "Zarr v2 of the COGs' own codec (imagecodecs' deflate and delta; v3 has no deflate) in chunks of one tile",
    threads(),
)
