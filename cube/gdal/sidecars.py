"""Files beside a local TIFF from which GDAL takes what the TIFF itself does not say."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from cube.io.stores import local_path

_MAX_SIDECAR_BYTES = 2**24
"""Of an XML file that is searched; a longer one counts as a sidecar unseen."""
# Elements of GDAL's .aux.xml that change pixels' meaning, validity or place; statistics, histograms and tables do not.
# A search, not a parse: it errs on the side of GDAL, and no XML can exhaust it.
_CHANGES = re.compile(
    rb"<(SRS|GeoTransform|GCPList|GeodataXform|NoDataValue|Scale|Offset|UnitType|Description|ColorInterp|ColorTable)\b"
    rb"|\"(NODATA_VALUES)\"",
    re.IGNORECASE,
)
_NAMES_CRS = re.compile(rb"<(refSysInfo)\b", re.IGNORECASE)


def find_sidecars(hrefs: Iterable[str], *, incomplete: Collection[str] = ()) -> dict[str, str]:
    """Return why GDAL says more of some local TIFFs than they do themselves.

    A mask (.msk), overviews (.ovr), GDAL's metadata (.aux.xml) where it holds more than statistics, and ERDAS's (.aux).
    Each folder is listed once, whatever the number of files.

    Args:
        hrefs: Paths and URLs; those on a network have no sidecars.
        incomplete: Those of them that have no transform or no CRS of their own: world files (.tfw, .tifw, .wld),
            MapInfo's .tab and ESRI's .xml count for these alone, as GDAL looks at them last.

    Returns:
        A reason, "sidecar scene.tif.msk", by href.
    """
    folders: dict[Path, Mapping[str, str]] = {}
    found: dict[str, str] = {}
    for href in hrefs:
        path = local_path(href)
        if path is None:
            continue
        if path.parent not in folders:
            folders[path.parent] = _names(path.parent)
        if reason := next(_reasons(path, folders[path.parent], is_incomplete=href in incomplete), None):
            found[href] = reason
    return found


def _names(folder: Path) -> dict[str, str]:
    """Return the names in a folder by their lower case, in which GDAL compares them."""
    try:
        return {name.lower(): name for name in os.listdir(folder)}  # noqa: PTH208 - three times as fast
    except OSError:
        return {}  # the file itself is then as unreadable, and its own error says so


def _reasons(path: Path, names: Mapping[str, str], *, is_incomplete: bool) -> Iterator[str]:
    name, stem = path.name.lower(), path.stem.lower()
    for each in (f"{name}.msk", f"{name}.ovr", f"{name}.aux", f"{stem}.aux"):
        if each in names:
            yield f"sidecar {names[each]}"
    if f"{name}.aux.xml" in names:
        yield from _searched(path.parent / names[f"{name}.aux.xml"], _CHANGES)
    if is_incomplete:
        ending = path.suffix[1:].lower()
        for each in dict.fromkeys((f"{ending[:1]}{ending[-1:]}w", f"{ending}w", "wld", "tab")):
            if f"{stem}.{each}" in names:
                yield f"sidecar {names[f'{stem}.{each}']}"
        if f"{stem}.xml" in names:
            yield from _searched(path.parent / names[f"{stem}.xml"], _NAMES_CRS)


def _searched(path: Path, pattern: re.Pattern[bytes]) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_SIDECAR_BYTES + 1)
    except OSError:
        return  # GDAL ignores what it cannot read
    match = pattern.search(data)
    if match:
        yield f"sidecar {path.name} ({(match[match.lastindex or 0]).decode('ascii')})"
    elif len(data) > _MAX_SIDECAR_BYTES:
        yield f"sidecar {path.name} (more than {_MAX_SIDECAR_BYTES} bytes)"
