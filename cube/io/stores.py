"""URLs and local paths to obstore's object stores: one store a bucket or host, shared by the whole process."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

import obstore
from obstore.store import HTTPStore, LocalStore, ObjectStore, from_url

from cube.errors import ReadError, SourceNotFoundError
from cube.settings import get_settings

OBJECT_SCHEMES = frozenset({"az", "abfs", "abfss", "s3", "s3a", "gs", "gcs"})
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


def is_url(text: str) -> bool:
    """Return whether `text` is a URL of any scheme, `file://` included, rather than a path."""
    return "://" in text and not _WINDOWS_DRIVE.match(text)


def local_path(href: str) -> Path | None:
    """Return the path of a local href (`file://` or a plain path), None for anything on a network."""
    if not is_url(href):
        return Path(href)
    parts = urlsplit(href)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def href_path(href: str) -> str:
    """Return the path in a URL (decoded), or a local path, with forward slashes."""
    return unquote(urlsplit(href).path) if "://" in href else href.replace("\\", "/")


def absolute(href: str) -> str:
    """Return `href` as an absolute URL or an absolute local path (posix separators)."""
    path = local_path(href)
    return href if path is None else Path(os.path.abspath(path.expanduser())).as_posix()  # noqa: PTH100 - keeps symlinks


def join(base: str, name: str) -> str:
    """Return `name` below `base`, both URLs or paths; a `name` that is absolute stands as it is."""
    if is_url(name) or Path(name).is_absolute():
        return name
    base_path, _, query = base.partition("?") if is_url(base) else (base, "", "")
    joined = f"{base_path.rstrip('/')}/{name}"
    return f"{joined}?{query}" if query else joined


def redact(text: str) -> str:
    """Return `text` without the user names and query strings of its URLs, which may hold passwords and signatures."""
    return re.sub(r"\?[^\s'\"`|,)]+", "?…", re.sub(r"://[^/?#\s]*@", "://…@", text))


def locate(href: str) -> tuple[ObjectStore, str]:
    """Return the store that holds `href`, and the object's path in it.

    Raises:
        SourceNotFoundError: It is a path in a folder that is not there.
        ReadError: The URL is of a scheme that no store reads, or is damaged.
    """
    try:
        return _locate(href)
    except (obstore.exceptions.BaseError, ValueError) as error:  # the latter for a port or host that is none
        raise ReadError(redact(href), f"its store cannot be opened: {_first_line(error)}") from None


def _locate(href: str) -> tuple[ObjectStore, str]:
    path = None if href.startswith(("http://", "https://")) else local_path(href)
    if path is not None:
        full = Path(absolute(href))
        if not full.parent.is_dir():
            raise SourceNotFoundError(href, "there is no such folder")
        return _local(full.parent.as_posix()), full.name
    parts = urlsplit(href)
    if parts.scheme in ("http", "https"):
        return _http(parts.scheme, parts.netloc, parts.query), unquote(parts.path).lstrip("/")
    if parts.scheme in OBJECT_SCHEMES:
        return _object(parts.scheme, parts.netloc), unquote(parts.path).lstrip("/")
    raise ReadError(
        redact(href), f"no store reads {parts.scheme}:// URLs; use a path, http(s)://, az://, s3:// or gs://"
    )


def sign(href: str, patch_url: Callable[[str], str] | None) -> str | None:
    """Return the URL to fetch where a user's function makes one, else None.

    Raises:
        ReadError: The function failed.
    """
    if patch_url is None:
        return None
    try:
        signed = patch_url(href)
    except Exception as error:
        raise ReadError(href, f"patch_url failed with {type(error).__name__}: {redact(str(error))}") from error
    if not isinstance(signed, str):
        raise ReadError(href, f"patch_url gave a {type(signed).__name__}, not a URL")
    return signed


def _first_line(error: BaseException) -> str:
    return redact(str(error).split("\n", 1)[0])


def _client_options() -> dict[str, Any]:
    settings = get_settings()
    return {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
        "timeout": timedelta(seconds=settings.timeout_s),
        "pool_max_idle_per_host": str(settings.requests_in_flight),
    }


# ranges.py alone retries: obstore does not retry 429, and two layers of retries multiply.
_NO_RETRIES: Any = {"max_retries": 0}


@functools.lru_cache(maxsize=4096)
def _local(folder: str) -> ObjectStore:
    return LocalStore(folder)


@functools.lru_cache(maxsize=1024)
def _http(scheme: str, netloc: str, query: str) -> ObjectStore:
    # object_store keeps the query of the base URL on every request: that is how signed URLs pass through.
    base = SplitResult(scheme, netloc, "/", query, "").geturl()
    return HTTPStore.from_url(base, client_options=cast("Any", _client_options()), retry_config=_NO_RETRIES)


@functools.lru_cache(maxsize=1024)
def _object(scheme: str, bucket: str) -> ObjectStore:
    return from_url(f"{scheme}://{bucket}", client_options=cast("Any", _client_options()), retry_config=_NO_RETRIES)
