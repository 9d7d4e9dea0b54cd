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
from cube.foreign.find import Foreign
from cube.foreign.open import find_version, open_foreign
from cube.foreign.served import ForeignStore
from cube.io.stores import redact
from cube.manifest.open import open_manifest
from cube.store import CubeStore
from server.chunks import SingleFlight
from server.errors import UnknownDatasetError

logger = logging.getLogger(__name__)


type ServedStore = CubeStore | ForeignStore
"""What a dataset is served from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    store: ServedStore
    fresh_until: float
    """On the monotonic clock."""


class CubeRegistry:
    """The server's cubes by dataset id; shared by the event loop and the threads of other plugins."""

    def __init__(self, places: Mapping[str, str | Foreign], *, refresh_s: float) -> None:
        """Remember where the cubes are; opens nothing.

        Args:
            places: By dataset id: path or URL of a manifest, or a store that others wrote.
            refresh_s: How long a cube counts as current without a look at its manifest.
        """
        self._places = dict(places)
        self._refresh_s = refresh_s
        self._opened: dict[tuple[str, int], _Opened] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._flights: SingleFlight[ServedStore] = SingleFlight()

    def ids(self) -> list[str]:
        """Return the ids of all datasets; opens nothing."""
        return list(self._places)

    async def find(self, dataset_id: str, level: int = 0) -> ServedStore:
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

    def open(self, dataset_id: str, level: int = 0) -> ServedStore:
        """Return a cube's current store to a thread that waits; errors as in `find`."""
        place = self._places.get(dataset_id)
        if place is None:
            raise UnknownDatasetError(f"there is no dataset {dataset_id!r}; GET /datasets lists what there is")
        key = dataset_id, level
        with self._locks[dataset_id]:
            opened = self._opened.get(key)
            if opened is not None and time.monotonic() < opened.fresh_until:
                return opened.store
            store = self._current(place, level, opened)
            self._opened[key] = _Opened(store=store, fresh_until=time.monotonic() + self._refresh_s)
            return store

    def _current(self, place: str | Foreign, level: int, opened: _Opened | None) -> ServedStore:
        try:
            if isinstance(place, str):
                manifest = open_manifest(place)
                if opened is not None and opened.store.version == manifest.version:
                    return opened.store
                return CubeStore(manifest, level=level)
            if level:
                raise UnknownDatasetError(f"there is no level {level}: a Zarr store or references have level 0 alone")
            if opened is not None and opened.store.version == find_version(place):
                return opened.store
            return ForeignStore(place)
        except SelectionError as error:
            raise UnknownDatasetError(str(error)) from None
        except CubeError as error:
            if opened is None:
                raise
            # Versions never change once written: the open one is still right, and its chunks may be in memory.
            where = redact(place if isinstance(place, str) else place.url)
            logger.warning("%s cannot be looked at again, version %s stays: %s", where, opened.store.version, error)
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
        store = self._registry.open(dataset_id)
        version, dataset = self._datasets.get(dataset_id, (None, None))
        if dataset is None or version != store.version:
            dataset = open_cube(store.manifest) if isinstance(store, CubeStore) else open_foreign(store.foreign)
            self._datasets[dataset_id] = store.version, dataset
        return dataset
