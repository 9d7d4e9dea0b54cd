"""Doubles that are real: a slow object store in a process of its own and a synthetic archive that knows its answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cube.testing.archive import Archive, unique_values, write_archive, write_cog
    from cube.testing.objectstore import Bandwidth, Counts, Faults, Latency, ObjectStore, Record

__all__ = [
    "Archive",
    "Bandwidth",
    "Counts",
    "Faults",
    "Latency",
    "ObjectStore",
    "Record",
    "unique_values",
    "write_archive",
    "write_cog",
]

_OF_ARCHIVE = {"Archive", "unique_values", "write_archive", "write_cog"}


def __getattr__(name: str) -> Any:
    # On first use: an object store needs nothing of what writes an archive, and that is GDAL.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "archive" if name in _OF_ARCHIVE else "objectstore"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
