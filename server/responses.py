"""Bytes as HTTP answers: GET and HEAD, ETag and 304, one byte range (RFC 9110)."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from server.errors import problem

_RANGE = re.compile(r"\s*bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})\s*", re.ASCII | re.IGNORECASE)
# An URL names a cube, not one version of it: caches may keep an answer, and have to ask whether it still holds.
_CACHE_CONTROL = "public, no-cache"


def not_modified(request: Request, etag: str) -> Response | None:
    """Return 304 where the client has the bytes already; asked before they are made."""
    asked = request.headers.get("if-none-match")
    if asked is None or (asked.strip() != "*" and etag not in _tags(asked)):
        return None
    return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _CACHE_CONTROL})


def data_response(request: Request, data: bytes, *, etag: str, media_type: str) -> Response:
    """Return bytes, or the range of them that the client asked for; uvicorn sends the head alone to HEAD."""
    headers = {"ETag": etag, "Cache-Control": _CACHE_CONTROL, "Accept-Ranges": "bytes"}
    asked = request.headers.get("range")
    if asked is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return Response(data, headers=headers, media_type=media_type)
    match = _RANGE.fullmatch(asked)
    if match is None or not (match[1] or match[2]) or (match[1] and match[2] and int(match[1]) > int(match[2])):
        return Response(data, headers=headers, media_type=media_type)  # several ranges or none: the whole is allowed
    size = len(data)
    if match[1]:
        start, stop = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= size:
        headers |= {"Content-Range": f"bytes */{size}"}
        return problem(416, f"bytes from {start} were asked for; there are {size}", headers=headers)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(data[start:stop], 206, headers=headers, media_type=media_type)


def _tags(header: str) -> set[str]:
    return {tag.strip().removeprefix("W/") for tag in header.split(",")}
