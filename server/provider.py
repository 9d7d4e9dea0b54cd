"""The cubes that the server has: opened on first use, looked at again for a new version, handed to every plugin."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr
from pydantic import PrivateAttr
from xpublish.plugins.hooks import Plugin, hookimpl

from cube.dataset import open_cube
from cube.errors import CubeError, SelectionError
from cube.manifest.open import open_manifest
from cube.store import CubeStore
from server.chunks import SingleFlight
from server.errors import UnknownDatasetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    store: CubeStore
    fresh_until: float
    """On the monotonic clock."""


class CubeRegistry:
    """The server's cubes by dataset id; shared by the event loop and the threads of other plugins."""

    def __init__(self, manifests: Mapping[str, str], *, refresh_s: float) -> None:
        """Remember where the cubes are; opens nothing.

        Args:
            manifests: Path or URL of each manifest by dataset id.
            refresh_s: How long a cube counts as current without a look at its manifest.
        """
        self._manifests = dict(manifests)
        self._refresh_s = refresh_s
        self._opened: dict[tuple[str, int], _Opened] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._flights: SingleFlight[CubeStore] = SingleFlight()

    def ids(self) -> list[str]:
        """Return the ids of all datasets; opens nothing."""
        return list(self._manifests)

    async def find(self, dataset_id: str, level: int = 0) -> CubeStore:
        """Return a cube's current store; lives on the server's event loop.

        Raises:
            UnknownDatasetError: There is no such dataset or level.
            CubeError: It cannot be opened.
        """
        key = dataset_id, level
        opened = self._opened.get(key)
        # While one request looks for a new version, the others go on with the one that is open.
        if opened is not None and (time.monotonic() < opened.fresh_until or key in self._flights):
            return opened.store
        return await self._flights.run(key, lambda: asyncio.to_thread(self.open, dataset_id, level))

    def open(self, dataset_id: str, level: int = 0) -> CubeStore:
        """Return a cube's current store to a thread that waits; errors as in `find`."""
        url = self._manifests.get(dataset_id)
        if url is None:
            raise UnknownDatasetError(f"there is no dataset {dataset_id!r}; GET /datasets lists what there is")
        key = dataset_id, level
        with self._locks[dataset_id]:
            opened = self._opened.get(key)
            if opened is not None and time.monotonic() < opened.fresh_until:
                return opened.store
            store = self._current(url, level, opened)
            self._opened[key] = _Opened(store=store, fresh_until=time.monotonic() + self._refresh_s)
            return store

    def _current(self, url: str, level: int, opened: _Opened | None) -> CubeStore:
        try:
            manifest = open_manifest(url)
            if opened is not None and opened.store.version == manifest.version:
                return opened.store
            return CubeStore(manifest, level=level)
        except SelectionError as error:
            raise UnknownDatasetError(str(error)) from None
        except CubeError as error:
            if opened is None:
                raise
            # Versions never change once written: the open one is still right, and its chunks may be in memory.
            logger.warning("%s cannot be looked at again, version %s stays: %s", url, opened.store.version, error)
            return opened.store


class CubeProvider(Plugin):
    """Publishes every cube to xpublish's plugins as a lazy dataset."""

    _registry: CubeRegistry = PrivateAttr()
    _datasets: dict[str, tuple[str, xr.Dataset]] = PrivateAttr(default_factory=dict)

    def __init__(self, registry: CubeRegistry) -> None:
        """Wrap a registry; opens nothing."""
        super().__init__(name="cubes")
        self._registry = registry

    @hookimpl
    def get_datasets(self) -> list[str]:
        """Return the ids of all datasets; opens nothing."""
        return self._registry.ids()

    @hookimpl
    def get_dataset(self, dataset_id: str) -> xr.Dataset | None:
        """Return a cube as a lazy dataset, or None where there is none of that id; reads no pixel."""
        if dataset_id not in self._registry.ids():
            return None
        manifest = self._registry.open(dataset_id).manifest
        version, dataset = self._datasets.get(dataset_id, (None, None))
        if dataset is None or version != manifest.version:
            dataset = open_cube(manifest)
            self._datasets[dataset_id] = manifest.version, dataset
        return dataset
