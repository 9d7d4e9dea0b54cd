"""Doubles that are real: a slow object store in a process of its own and a synthetic archive that knows its answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cube.testing.archive import Archive, unique_values, write_archive, write_cog
    from cube.testing.objectstore import Counts, ObjectStore

__all__ = ["Archive", "Counts", "ObjectStore", "unique_values", "write_archive", "write_cog"]

_HOMES = {"Counts": "objectstore", "ObjectStore": "objectstore"}


def __getattr__(name: str) -> Any:
    # On first use: `python -m cube.testing.objectstore` would else find its module imported before it runs.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'archive')}"), name)
