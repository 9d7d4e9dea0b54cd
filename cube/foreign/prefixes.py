"""Where references may point to: the folder that they lie in, and what the user allows besides; nowhere else."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cube.errors import ReferencesError
from cube.io.stores import absolute, is_url, local_path, redact

_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Prefixes:
    """What one set of references may point to.

    References are addresses that somebody else wrote: of files of this machine, or of hosts that only it can reach.
    Whoever opens them, or serves what they hold, must not read there by accident.
    """

    def __init__(self, document: str, allow: Sequence[str] = ()) -> None:
        """Remember what is allowed.

        Args:
            document: Path or URL of the references (a file or a folder); its own folder is allowed.
            allow: Further URLs and paths; all below them is allowed.

        Raises:
            ReferencesError: One of them is no URL and no path.
        """
        self._document = document
        self._is_remote = local_path(document) is None
        self._given = [_without_query(each) for each in (_folder_of(document), *allow)]
        self._prefixes = [_parts(each) for each in self._given]
        self._allowed: dict[str, str] = {}

    def resolve(self, target: str) -> str:
        """Return the URL or absolute path that a reference means; one that is relative lies beside the references.

        Raises:
            ReferencesError: It may not point there.
        """
        return self.resolve_all([target])[0]

    def resolve_all(self, targets: Iterable[str]) -> list[str]:
        """Return what each of some references means; see `resolve`."""
        urls, refused = [], []
        for target in targets:
            url = self._allowed.get(target)
            if url is None:
                url = self._absolute(target)
                found = _parts(url)
                if any(_is_below(found, prefix) for prefix in self._prefixes):
                    self._allowed[target] = url
                else:
                    refused.append(url)
            urls.append(url)
        if refused:
            kept = ", ".join(redact(each) for each in self._given)
            raise ReferencesError(
                f"{redact(self._document)} points to {redact(refused[0])}, and only what lies below {kept} is allowed; "
                f"if it may be read, say so: allow=[{redact(_common_folder(refused))!r}]"
            )
        return urls

    def _absolute(self, target: str) -> str:
        url = target
        if not is_url(target) and not Path(target).is_absolute():
            url = f"{_without_query(_folder_of(self._document)).rstrip('/')}/{target}"
        if local_path(url) is not None and self._is_remote:
            raise ReferencesError(
                f"{redact(self._document)} points to {redact(target)}, a file of this machine: references that come "
                "over a network may not"
            )
        return url


def _common_folder(urls: list[str]) -> str:
    """Return the deepest folder in which some URLs lie that have one host, else that of the first."""
    start = posixpath.commonprefix([_without_query(url) for url in urls])
    host = urls[0].find("/", urls[0].find("://") + 3) if is_url(urls[0]) else 0
    return start[: start.rfind("/") + 1] if start.rfind("/") >= host else urls[0][: host + 1]


def _folder_of(document: str) -> str:
    """Return the folder that references lie in; a folder of Parquet references lies in another."""
    plain, question, query = document.partition("?")
    return plain.rstrip("/").rpartition("/")[0] + "/" + question + query


def _without_query(url: str) -> str:
    return url.partition("?")[0] if is_url(url) else url


def _parts(href: str) -> tuple[str, str, str]:
    """Return scheme, host and path of a URL or path in one form, so that equal places are equal.

    Raises:
        ReferencesError: It has none.
    """
    path = local_path(href)
    if path is not None:
        return "file", "", Path(absolute(href)).resolve().as_posix()
    try:
        split = urlsplit(href)
        host = split.hostname or ""
        port = f":{split.port}" if split.port else ""
    except ValueError as error:
        raise ReferencesError(f"{redact(href)!r} is no URL: {error}") from None
    decoded = unquote(split.path).replace("\\", "/")
    if _CONTROL.search(decoded) or ".." in decoded.split("/") or not host:
        raise ReferencesError(f"{redact(href)!r} is no plain URL")
    # Of az:// what stands before the @ is a container.
    container = f"{split.username}@" if split.username and split.scheme in ("az", "abfs", "abfss") else ""
    scheme = _ALIASES.get(split.scheme, split.scheme)
    return scheme, f"{container}{host.lower()}{port}", posixpath.normpath(decoded or "/")


def _is_below(found: tuple[str, str, str], prefix: tuple[str, str, str]) -> bool:
    if found[:2] != prefix[:2]:
        return False
    folder = prefix[2].rstrip("/")
    return found[2] == folder or found[2].startswith(f"{folder}/")
