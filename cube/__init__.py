"""Any archive of Cloud-Optimized GeoTIFFs is a Zarr cube."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cube.archive.build import build
    from cube.dataset import open_cube
    from cube.errors import CubeError
    from cube.manifest.open import Manifest, open_manifest
    from cube.placing import place
    from cube.spec import CubeSpec
    from cube.tree import open_tree

__all__ = ["CubeError", "CubeSpec", "Manifest", "build", "open_cube", "open_manifest", "open_tree", "place"]

# Imported on first use: `import cube` costs milliseconds, xarray alone half a second.
_HOMES = {
    "CubeError": "cube.errors",
    "CubeSpec": "cube.spec",
    "Manifest": "cube.manifest.open",
    "build": "cube.archive.build",
    "open_cube": "cube.dataset",
    "open_manifest": "cube.manifest.open",
    "open_tree": "cube.tree",
    "place": "cube.placing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cube' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
