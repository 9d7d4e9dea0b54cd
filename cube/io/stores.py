"""URLs and local paths to stores: one a bucket, host or folder, shared by the whole process."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import AsyncIterator, Callable, Hashable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from obstore.exceptions import BaseError

from cube.errors import OfflineError, ReadError, SourceNotFoundError
from cube.io.answer import Answer, RefusedError, Store
from cube.io.azure import AdlfsStore
from cube.io.credentials import address, azure_access, bucket_access, snapshot
from cube.io.http import http_store
from cube.io.objects import azure_store, bucket_store, folder_store
from cube.settings import get_settings

_AZURE_SCHEMES = frozenset({"az", "abfs", "abfss"})
OBJECT_SCHEMES = _AZURE_SCHEMES | {"s3", "s3a", "gs", "gcs"}
_HTTP = ("http://", "https://")
_ORIGIN = re.compile(r"https?://[^/?#]*")
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


def is_url(text: str) -> bool:
    """Return whether `text` is a URL of any scheme, `file://` included, rather than a path."""
    return "://" in text and not _WINDOWS_DRIVE.match(text)


def local_path(href: str) -> Path | None:
    """Return the path of a local href (`file://` or a plain path), None for anything on a network."""
    if href.startswith(_HTTP):  # asked several times a source: not worth parsing a URL
        return None
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
    # What stands before the @ of az:// and abfs:// is a container.
    return re.sub(r"\?[^\s'\"`|,)]+", "?…", re.sub(r"(?<!\baz)(?<!\babfs)(?<!\babfss)://[^/?#\s]*@", "://…@", text))


class Bucket(Store, Protocol):
    """A store whose objects can be listed."""

    def pages(self, prefix: str, *, after: str | None) -> AsyncIterator[list[str]]:
        """Yield the keys that begin with `prefix`, which is a folder, in order; those behind `after` only.

        Raises:
            RefusedError: As for `get`.
        """


def locate(href: str) -> tuple[Store, str]:
    """Return the store that holds `href`, and the object's path in it.

    Raises:
        SourceNotFoundError: It is a path in a folder that is not there.
        OfflineError: It is not on this machine, and nothing may be fetched.
        ReadError: The URL is of a scheme that no store reads, or is damaged; or no account is set for it.
    """
    try:
        return _locate_local(href) or _locate_remote(href)
    except (BaseError, ValueError) as error:  # the latter for a port or host that is none
        raise ReadError(redact(href), f"its store cannot be opened: {_first_line(error)}") from None


def find_bucket(url: str) -> Bucket:
    """Return the store of a bucket or container, to list it.

    Raises:
        ReadError: As for `locate`.
    """
    store, _ = locate(f"{url}/")
    assert isinstance(store, _RenewedBucket)  # noqa: S101 - as those of all OBJECT_SCHEMES are
    return store


def _locate_local(href: str) -> tuple[Store, str] | None:
    path = local_path(href)
    if path is None:
        return None
    full = Path(absolute(href))
    if not full.parent.is_dir():
        raise SourceNotFoundError(href, "there is no such folder")
    return _folder(full.parent.as_posix()), full.name


def _locate_remote(href: str) -> tuple[Store, str]:
    """Return what `locate` does for everything that is not on this machine; whatever forbids a network goes here."""
    if get_settings().offline:
        raise OfflineError(
            redact(href),
            "is on a network, and CUBE_OFFLINE=1 lets nothing be fetched; take it along with `cube copy` while there "
            "is a network, and open the copy",
        )
    origin = _ORIGIN.match(href)
    if origin is not None:
        return http_store(origin[0]), href
    parts = urlsplit(href)
    if parts.scheme in OBJECT_SCHEMES:
        return _bucket(parts.scheme, parts.netloc, address(parts.scheme)), unquote(parts.path).lstrip("/")
    raise ReadError(
        redact(href), f"no store reads {parts.scheme}:// URLs; use a path, http(s)://, az://, s3:// or gs://"
    )


def sign(href: str, patch_url: Callable[[str], str] | None) -> str | None:
    """Return the URL to fetch where a user's function makes one, else None; offline it is not called.

    Raises:
        ReadError: The function failed.
    """
    if patch_url is None or get_settings().offline:  # it may ask for a token
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


@functools.lru_cache(maxsize=4096)
def _folder(folder: str) -> Store:
    return folder_store(folder)


@functools.lru_cache(maxsize=1024)
def _bucket(scheme: str, netloc: str, _address: Hashable) -> Bucket:
    return _RenewedBucket(functools.partial(_open_bucket, scheme, netloc))


def _open_bucket(scheme: str, netloc: str) -> Bucket:
    if scheme not in _AZURE_SCHEMES:
        return bucket_store(bucket_access(scheme, netloc))
    access = azure_access(netloc)
    return AdlfsStore(access) if get_settings().azure_client == "adlfs" else azure_store(access)


_OF_SOMEBODY_ELSE = frozenset({301, 400, 401, 403, 404})
"""Statuses that stores give to who has no rights, or for a wrong region."""


class _RenewedBucket:
    """A bucket that is opened anew when it refuses after the environment has changed.

    In a notebook credentials are set after the first refusal, or again when they have expired.
    """

    def __init__(self, open_bucket: Callable[[], Bucket]) -> None:
        self._open = open_bucket
        self._renew()

    def _renew(self) -> None:
        self._environment, self._bucket = snapshot(), self._open()

    def _opened_anew(self, refused: Bucket, error: RefusedError) -> Bucket:
        """Return the bucket to ask once more, as somebody else; raises the error where there is none."""
        if error.status not in _OF_SOMEBODY_ELSE:
            raise error
        if refused is self._bucket and self._environment != snapshot():
            try:
                self._renew()
            except (BaseError, ValueError) as problem:
                raise RefusedError(_first_line(problem), is_transient=False) from None
        if refused is self._bucket:
            raise error
        return self._bucket

    @property
    def host(self) -> str:
        return self._bucket.host

    async def get(
        self,
        path: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        on_head: Callable[[], None] | None = None,
    ) -> Answer:
        bucket = self._bucket
        try:
            return await bucket.get(path, start, stop, if_match=if_match, on_head=on_head)
        except RefusedError as error:
            anew = self._opened_anew(bucket, error)
        return await anew.get(path, start, stop, if_match=if_match, on_head=on_head)

    async def pages(self, prefix: str, *, after: str | None) -> AsyncIterator[list[str]]:
        bucket = self._bucket
        try:
            async for page in bucket.pages(prefix, after=after):
                yield page
            return
        except RefusedError as error:
            anew = self._opened_anew(bucket, error)
        async for page in anew.pages(prefix, after=after):
            yield page
