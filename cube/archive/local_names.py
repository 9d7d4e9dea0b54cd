"""Hrefs to names of local files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

from cube.io.stores import href_path, is_url

_NAME_LENGTH = 120
_UNSAFE = re.compile(r'[<>:"|?*\\\x00-\x1f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def local_names(hrefs: Sequence[str], folder: str) -> dict[str, str]:
    """Return a path below `folder` for each href: the folders and names that they differ by, fit for any file system.

    It depends on all hrefs of a cube, and so is the same for each part of it that is copied.
    """
    parts = {href: _segments(href) for href in hrefs}
    folders = [each[:-1] for each in parts.values()]
    shared = 0
    while folders and all(len(each) > shared and each[shared] == folders[0][shared] for each in folders):
        shared += 1
    names = {href: "/".join([folder, *map(_safe, each[shared:])]) for href, each in parts.items()}
    taken = Counter(each.casefold() for each in names.values())
    for href, name in names.items():
        if taken[name.casefold()] > 1 or "?" in href:
            stem, dot, suffix = name.rpartition(".")
            marked = hashlib.sha256(href.encode()).hexdigest()[:10]
            names[href] = f"{stem}-{marked}{dot}{suffix}" if dot and "/" not in suffix else f"{name}-{marked}"
    return names


def _segments(href: str) -> list[str]:
    path = [each for each in href_path(href).split("/") if each not in ("", ".", "..")]
    return [urlsplit(href).netloc.rpartition("@")[2], *path] if is_url(href) else path


def _safe(segment: str) -> str:
    """Return a name that Windows takes, too, and that is not hidden."""
    name = _UNSAFE.sub("_", segment).rstrip(". ").lstrip(" ") or "_"
    if len(name) > _NAME_LENGTH:
        name = f"{hashlib.sha256(name.encode()).hexdigest()[:10]}-{name[-_NAME_LENGTH:]}"
    return f"_{name}" if name.startswith(".") or _RESERVED.fullmatch(name) else name
