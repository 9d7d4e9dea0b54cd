"""Folders and globs of object stores to the URLs of what lies in them."""

from __future__ import annotations

import asyncio
import fnmatch
import random
import re
from urllib.parse import unquote

from cube.errors import ReadError
from cube.io import loop
from cube.io.answer import RefusedError
from cube.io.stores import OBJECT_SCHEMES, find_bucket, redact
from cube.settings import get_settings

_MAGIC = re.compile(r"[*?\[]")
_LONGEST_PAUSE_S = 10.0


def is_listed(href: str) -> bool:
    """Return whether `href` names a glob or a folder of an object store: its last part has no ending."""
    scheme, _, rest = href.partition("://")
    key = rest.partition("/")[2]
    return scheme in OBJECT_SCHEMES and (_MAGIC.search(key) is not None or "." not in key.rpartition("/")[2])


def list_objects(href: str) -> list[str]:
    """Return the URLs of the objects below a folder, or that match a glob, in order; blocks.

    A `*` stands for anything but a slash, `**` for any number of folders, or for all below where it comes last.

    Raises:
        ReadError: The store refuses or fails.
    """
    scheme, _, rest = href.partition("://")
    bucket, _, key = rest.partition("/")
    magic = _MAGIC.search(key)
    folder = unquote(key.rstrip("/") if magic is None else key[: max(0, key.rfind("/", 0, magic.start()))])
    folder += "/" if folder else ""
    keys = [each for each in loop.run(_list(href, f"{scheme}://{bucket}", folder)) if each.startswith(folder)]
    if magic is not None:
        patterns = unquote(key).split("/")
        keys = [each for each in keys if _matches(each.split("/"), patterns)]
    # No more than what would end or change the path of a URL, so that names stay legible.
    quoted = [each.replace("%", "%25").replace("?", "%3F").replace("#", "%23") for each in sorted(keys)]
    return [f"{scheme}://{bucket}/{each}" for each in quoted]


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns == ["**"]:
        return True
    if patterns[0] == "**":
        return any(_matches(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


async def _list(href: str, bucket: str, folder: str) -> list[str]:
    store = find_bucket(bucket)
    keys: list[str] = []
    attempts = get_settings().attempts
    for attempt in range(1, attempts + 1):
        try:
            async for page in store.pages(folder, after=keys[-1] if keys else None):
                keys += page
            return keys
        except RefusedError as error:
            if not error.is_transient or attempt == attempts:
                hint = f": {error.hint}" if error.hint else ""
                raise ReadError(redact(href), f"could not be listed: {error.text}{hint}") from None
            pause_s = random.uniform(0, min(_LONGEST_PAUSE_S, 0.1 * 2**attempt))  # noqa: S311
            await asyncio.sleep(max(error.retry_after_s or 0.0, pause_s))
    raise AssertionError("unreachable: the last attempt returns or raises")
