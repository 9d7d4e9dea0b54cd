"""Cubes as Zarr stores over HTTP: version 3 and version 2, each level, from one encoder and one cache."""

from __future__ import annotations

import re
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from pydantic import PrivateAttr
from starlette.requests import Request
from starlette.responses import Response
from xpublish.plugins.hooks import Dependencies, Plugin, hookimpl

from cube.store import Chunk
from cube.zarr_metadata import ZarrFormat
from server.chunks import ChunkCache
from server.errors import UnknownDatasetError, problem
from server.provider import CubeRegistry
from server.responses import data_response, not_modified

_ROUTES: tuple[tuple[str, ZarrFormat], ...] = (
    # The ending is what xarray guesses its engine from. Both versions at one URL make zarr-python warn at each open.
    ("/datasets/{dataset_id}.zarr/{key:path}", 3),
    ("/datasets/{dataset_id}/zarr/{key:path}", 3),
    ("/datasets/{dataset_id}/v2.zarr/{key:path}", 2),
    ("/datasets/{dataset_id}/level/{level}.zarr/{key:path}", 3),
    ("/datasets/{dataset_id}/level/{level}/v2.zarr/{key:path}", 2),
)
_LEVEL = re.compile(r"0|[1-9][0-9]?", re.ASCII)


class ZarrPlugin(Plugin):
    """The Zarr routes."""

    _registry: CubeRegistry = PrivateAttr()
    _cache: ChunkCache = PrivateAttr()

    def __init__(self, registry: CubeRegistry, cache: ChunkCache) -> None:
        """Remember where cubes and encoded chunks are."""
        super().__init__(name="zarr")
        self._registry = registry
        self._cache = cache

    @hookimpl
    def app_router(self, deps: Dependencies) -> APIRouter:
        """Return the routes, as raw endpoints: FastAPI's dependencies cost four fifths of the requests a second."""
        del deps
        router = APIRouter()
        for path, zarr_format in _ROUTES:
            router.add_route(path, _endpoint(self._registry, self._cache, zarr_format), methods=["GET", "HEAD"])
        return router


def _endpoint(
    registry: CubeRegistry, cache: ChunkCache, zarr_format: ZarrFormat
) -> Callable[[Request], Awaitable[Response]]:
    async def serve_key(request: Request) -> Response:
        dataset_id, key = request.path_params["dataset_id"], request.path_params["key"]
        store = await registry.find(dataset_id, _level(request.path_params))
        found = store.find(key, zarr_format)
        if found is None:
            return problem(404, f"the store has no key {key!r}", dataset=dataset_id)
        etag = f'"{store.tag}-{zlib.crc32(key.encode()):08x}"'
        known = not_modified(request, etag)
        if known is not None:
            return known
        if isinstance(found, Chunk):
            chunk = found
            found = await cache.get((dataset_id, store.tag, chunk), lambda: store.read_chunk(chunk))
        is_json = key.endswith((".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"))
        media_type = "application/json" if is_json else "application/octet-stream"
        return data_response(request, found, etag=etag, media_type=media_type)

    return serve_key


def _level(path_params: dict[str, Any]) -> int:
    level = path_params.get("level", "0")
    if not _LEVEL.fullmatch(level):
        raise UnknownDatasetError(f"level {level!r} is no number of a level; 0 is full resolution")
    return int(level)
