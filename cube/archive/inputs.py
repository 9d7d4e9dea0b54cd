"""Whatever names an archive (folder, glob, URLs, STAC) to its sources, before any header is read."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from cube.errors import BuildError, SelectionError
from cube.io.listing import is_listed, list_objects
from cube.io.stores import absolute, is_url, redact
from cube.source import Source
from cube.stac.sources import is_stac, sources_from_stac

_TIFF_ENDINGS = (".tif", ".tiff")
_SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature", "token", "access_token"})


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and not set(value) & set("/\\\0")


def _is_json(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_names(value: Any) -> bool:
    named = [value] if isinstance(value, str) else value
    return isinstance(named, Iterable) and not isinstance(named, bytes) and all(isinstance(each, str) for each in named)


_TEXT: tuple[Callable[[Any], bool], str] = lambda value: isinstance(value, str), "text"
_SWITCH: tuple[Callable[[Any], bool], str] = lambda value: isinstance(value, bool), "True or False"
_FUNCTION: tuple[Callable[[Any], bool], str] = callable, "a function"
_ARGUMENTS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_name, "text without slashes"),
    "to": (lambda value: isinstance(value, (str, os.PathLike)), "a path or URL"),
    "bands": (_is_names, "one name or a list of names, or None for all"),
    "pattern": _TEXT,
    "bands_as": _TEXT,
    "crs": (_TEXT[0], "text, as 'EPSG:4326'"),
    "time": _SWITCH,
    "harmonize": _SWITCH,
    "fail_on_error": _SWITCH,
    "fill_value": (_is_number, "a number"),
    "attributes": (_is_json, "a dict of what JSON can hold, by text"),
    "patch_url": _FUNCTION,
    "progress": _FUNCTION,
    "level": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "mask_and_scale": _SWITCH,
}
"""What each argument of `build` and `open_cube` may be, and how to say so."""
_NEVER_NONE = frozenset({"time", "harmonize", "fail_on_error", "mask_and_scale", "level"})


def require_arguments(**arguments: Any) -> None:
    """Refuse arguments of `build` and `open_cube` of the wrong form, before they mean something by accident.

    Raises:
        SelectionError: One of them; names it and says what it may be.
    """
    for name, value in arguments.items():
        is_fine, words = _ARGUMENTS[name]
        if not is_fine(value) and (value is not None or name in _NEVER_NONE):
            raise SelectionError(f"{name}={value!r}: give {words}")


def find_sources(what: Any, bands: Sequence[str] | None) -> list[Source]:
    """Return the sources that `what` names; their bands are unnamed where only a header or a name can say.

    Args:
        what: What `cube.build` takes.
        bands: STAC asset keys or common names to take; all where None.

    Raises:
        BuildError: It names nothing, or a URL that carries a signature.
    """
    sources = list(_sources(what, bands))
    if not sources:
        raise BuildError(f"{describe(what)}: no COG was found; give a folder, a glob, URLs or STAC items of GeoTIFFs")
    _refuse_signed(sources)
    return sources


def describe(what: Any) -> str:
    """Return what a user gave, for an error."""
    return str(what) if isinstance(what, (str, Path)) else f"a {type(what).__name__}"


def default_name(what: Any) -> str:
    """Return a name for the cube of what a user gave."""
    text = str(what[0]) if isinstance(what, (list, tuple)) and what else str(what)
    stem = Path(text.partition("?")[0].rstrip("/*")).stem if isinstance(what, (str, Path, list, tuple)) else ""
    cleaned = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem).strip("-")
    return cleaned[:60] or "cube"


def _sources(what: Any, bands: Sequence[str] | None) -> Iterable[Source]:
    """Return the sources that `what` names, bands unnamed where only a header or a file name can say."""
    if isinstance(what, (str, Path)):
        return _from_text(str(what), bands)
    if is_stac(what):
        return sources_from_stac(what, bands=bands)
    if isinstance(what, Iterable) and not isinstance(what, (bytes, Mapping)):
        found: list[Source] = []
        for each in what:
            if not isinstance(each, (str, Path)):
                raise BuildError(f"cannot build a cube from {describe(each)} in a list; give paths, URLs or STAC Items")
            found += _from_text(str(each), bands)
        return found
    raise BuildError(f"cannot build a cube from {describe(what)}; give paths, URLs or STAC items")


def _from_text(text: str, bands: Sequence[str] | None) -> Iterable[Source]:
    if not text.strip():
        raise BuildError(f"{text!r} names nothing; give a folder, a glob, URLs or STAC items of GeoTIFFs")
    if is_stac(text):
        return sources_from_stac(text, bands=bands)
    if is_url(text) and not text.startswith("file:"):
        return [_plain(href) for href in _from_store(text)] if is_listed(text) else [_plain(text)]
    path = Path(absolute(text))
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix.lower() in _TIFF_ENDINGS and each.is_file())
        if not found:
            raise BuildError(f"the folder {path} holds no .tif or .tiff file")
        return [_plain(each.as_posix()) for each in found]
    if glob.has_magic(text) and not path.exists():
        matches = sorted(glob.glob(path.as_posix(), recursive=True))  # noqa: PTH207 - absolute patterns
        if not matches:
            raise BuildError(f"no file matches {text}")
        return [_plain(Path(each).as_posix()) for each in matches if Path(each).is_file()]
    if not path.exists():
        raise BuildError(f"{text}: there is no such file or folder")
    return [_plain(path.as_posix())]


def _from_store(text: str) -> list[str]:
    """Return the URLs of what a folder, or a glob, of an object store holds."""
    found = list_objects(text)
    if glob.has_magic(text):
        if not found:
            raise BuildError(f"no object matches {text}")
        return found
    images = [href for href in found if href.lower().endswith(_TIFF_ENDINGS)]
    if not images and not found and not text.endswith("/"):
        return [text]  # an object whose name has no ending, or nothing, which its scan will tell
    if not images:
        raise BuildError(f"the folder {text} holds no .tif or .tiff object")
    return images


def holds_secret(text: str) -> bool:
    """Return whether a URL carries a signature, or the password of a user."""
    keys = {key.lower() for key, _ in parse_qsl(text.partition("?")[2], keep_blank_values=True)}
    # In az:// and abfs:// a container may stand before the "@".
    is_http = text.startswith(("http://", "https://"))
    return bool(keys & _SIGNATURES) or (is_http and "@" in text.split("/", 3)[2])


def _refuse_signed(sources: Sequence[Source]) -> None:
    for source in sources:
        if holds_secret(source.href):
            raise BuildError(
                f"{redact(source.href)} carries a signature or password, which a manifest must not keep; give unsigned "
                "hrefs, and patch_url= with the function that signs them"
            )


def _plain(href: str) -> Source:
    return Source(href=href, item=Path(href.partition("?")[0]).stem)
