"""A catalogue as an ASGI application: `create_app`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from xpublish.plugins.hooks import Plugin
from xpublish.plugins.included.dataset_info import DatasetInfoPlugin
from xpublish.rest import Rest

from cube.catalog import Catalog, Entry, read_catalog
from cube.errors import CubeError
from cube.foreign.find import Foreign
from server.chunks import ChunkCache
from server.errors import HANDLERS
from server.provider import CubeProvider, CubeRegistry
from server.routes.catalog import CatalogPlugin
from server.routes.health import HealthPlugin
from server.routes.zarr import ZarrPlugin
from server.settings import ServerSettings

logger = logging.getLogger(__name__)


def create_app(
    catalog: str | os.PathLike[str] | Mapping[str, Entry],
    *,
    settings: ServerSettings | None = None,
    plugins: Mapping[str, Plugin] | None = None,
) -> FastAPI:
    """Return the application that serves a catalogue's cubes; opens none of them.

    Args:
        catalog: The file, or its entries by name.
        settings: From the environment where None.
        plugins: Further xpublish plugins by name; none is loaded only because it is installed.

    Raises:
        CatalogError: The catalogue cannot be read.
    """
    settings = settings or ServerSettings()
    entries = catalog if isinstance(catalog, Mapping) else read_catalog(catalog)
    served = _served(entries)
    registry = CubeRegistry({name: place for name, (_, place) in served.items()}, refresh_s=settings.refresh_s)
    own = [
        ZarrPlugin(registry, ChunkCache(settings.chunk_cache_bytes)),
        CatalogPlugin({name: entry for name, (entry, _) in served.items()}),
        HealthPlugin(),
        CubeProvider(registry),
        DatasetInfoPlugin(),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "HEAD"],
        allow_headers=["*"],
        expose_headers=["ETag", "Content-Range", "Accept-Ranges", "Content-Length"],
    )
    rest = Rest(
        plugins={plugin.name: plugin for plugin in own} | dict(plugins or {}),
        app_kws={"title": "cogcube", "middleware": [cors], "exception_handlers": HANDLERS},
    )
    app: FastAPI = rest.app
    return app


def _served(entries: Mapping[str, Entry]) -> dict[str, tuple[Entry, str | Foreign]]:
    """Return each entry and where it is served from by dataset id; what cannot be is left out and logged."""
    folder = (Path(entries.href).absolute().parent if isinstance(entries, Catalog) else Path.cwd()).as_posix()
    served = {}
    for name in entries:
        try:
            entry = entries[name]
            place = entry.foreign(folder) or entry.manifest_url(folder)
        except CubeError as error:
            logger.warning("not served: %s", error)
            continue
        if place is None:
            logger.info("not served: %s, which %s reads", name, entry.driver)
        elif name.endswith(".zarr"):
            logger.warning("not served: %s, as its name would make URLs that mean two things", name)
        else:
            served[name] = entry, place
    return served
