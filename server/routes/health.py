"""`/health`: whether the server answers; and `/`, where to go from here."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from xpublish.plugins.hooks import Dependencies, Plugin, hookimpl


class HealthPlugin(Plugin):
    """The routes that need no dataset."""

    name: str = "health"

    @hookimpl
    def app_router(self, deps: Dependencies) -> APIRouter:
        """Return the routes."""
        del deps
        router = APIRouter()
        router.add_route("/", _index, methods=["GET", "HEAD"])
        router.add_route("/health", _health, methods=["GET", "HEAD"])
        return router


async def _health(request: Request) -> Response:
    """Return that the event loop turns: opens no dataset, so that one broken cube does not take the server down."""
    del request
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


async def _index(request: Request) -> Response:
    base = str(request.base_url).rstrip("/")
    return JSONResponse(
        {
            "title": "cogcube: COG archives as Zarr cubes",
            "datasets": f"{base}/datasets",
            "zarr": f"{base}/datasets/{{id}}.zarr",
            "zarr_v2": f"{base}/datasets/{{id}}/v2.zarr",
            "catalog": f"{base}/catalog.yaml",
            "health": f"{base}/health",
        }
    )
