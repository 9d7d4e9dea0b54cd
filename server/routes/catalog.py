"""`/catalog.yaml`: the intake catalogue of what is served, its entries open over HTTP without cogcube."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import PrivateAttr
from starlette.requests import Request
from starlette.responses import Response
from xpublish.plugins.hooks import Dependencies, Plugin, hookimpl

from cube.catalog import Entry, dump_catalog, zarr_entry


class CatalogPlugin(Plugin):
    """The catalogue's route."""

    _entries: Mapping[str, Entry] = PrivateAttr()

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        """Remember the entries of what is served."""
        super().__init__(name="catalog")
        self._entries = entries

    @hookimpl
    def app_router(self, deps: Dependencies) -> APIRouter:
        """Return the route."""
        del deps
        router = APIRouter()
        router.add_route("/catalog.yaml", self._serve, methods=["GET", "HEAD"])
        return router

    async def _serve(self, request: Request) -> Response:
        # By the name that the client knows the server by: it may see it through a proxy or a tunnel.
        base = str(request.base_url).rstrip("/")
        entries = [
            zarr_entry(name, f"{base}/datasets/{name}.zarr", description=entry.description, metadata=_published(entry))
            for name, entry in self._entries.items()
        ]
        return Response(dump_catalog(entries), media_type="application/yaml", headers={"Cache-Control": "no-cache"})


def _published(entry: Entry) -> dict[str, Any]:
    """Return an entry's metadata without what is the server's own business."""
    return {key: value for key, value in entry.metadata.items() if key != "allow"}
