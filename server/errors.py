"""Errors as HTTP answers: "not there" is 404, a failure never is, as every Zarr client takes 404 for "no data"."""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cube.errors import CubeError, ManifestError, SourceError
from cube.io.stores import redact

logger = logging.getLogger(__name__)


class UnknownDatasetError(CubeError):
    """A dataset, or a level of one, that the server does not have."""


def problem(
    status: int, detail: str, *, dataset: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error as application/problem+json (RFC 9457), with the dataset that it is about."""
    content = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(
        content | ({} if dataset is None else {"dataset": dataset}),
        status,
        headers={**(headers or {}), "Cache-Control": "no-store"},
        media_type="application/problem+json",
    )


def status_of(error: CubeError) -> int:
    """Return the HTTP status of an error of ours."""
    if isinstance(error, UnknownDatasetError):
        return 404
    if isinstance(error, SourceError):
        return 502  # the store behind us
    return 503 if isinstance(error, ManifestError) else 500


async def answer_cube_error(request: Request, error: Exception) -> Response:
    """Return what the client is told of an error of ours: the dataset, the file and the reason."""
    if not isinstance(error, CubeError):
        raise error
    status = status_of(error)
    if status != 404:
        logger.warning("%s: %s", request.url.path, error)
    return problem(status, redact(str(error)), dataset=_dataset(request))


async def answer_http_error(request: Request, error: Exception) -> Response:
    """Return an error of the framework (no such route, method not allowed) in the same form."""
    if not isinstance(error, HTTPException):
        raise error
    return problem(error.status_code, str(error.detail), headers=error.headers, dataset=_dataset(request))


async def answer_bug(request: Request, error: Exception) -> Response:
    """Return that something went wrong, and no more; Starlette raises the error again, and uvicorn logs it."""
    del error
    return problem(500, "the server failed on this request; its log says why", dataset=_dataset(request))


def _dataset(request: Request) -> str | None:
    return request.path_params.get("dataset_id")


HANDLERS = {CubeError: answer_cube_error, HTTPException: answer_http_error, Exception: answer_bug}
"""By exception, as Starlette takes them."""
