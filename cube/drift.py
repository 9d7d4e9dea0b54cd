"""Whether a source is still what its manifest says of it."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cube.errors import SourceChangedError, SourceError, SourceNotFoundError
from cube.io.ranges import ObjectVersion
from cube.io.stores import local_path
from cube.manifest.open import Manifest, SourceFacts
from cube.scan import ScannedSource, scan_sources
from cube.source import Source

_UNCOMPRESSED = 1


def version_of(facts: SourceFacts) -> ObjectVersion | None:
    """Return what every answer about a remote source must be of; None for a local one (see `require_unchanged`)."""
    if local_path(facts.href) is not None:
        return None
    return ObjectVersion(size=facts.size, etag=facts.etag, last_modified=facts.last_modified)


def require_unchanged(manifest: Manifest, source: int, facts: SourceFacts) -> None:
    """Refuse to read a local source that was written since it was scanned.

    A remote one is asked with every request. A local one has no ETag that survives a copy of its folder, so the time
    it was modified stands for it; where that differs, the file's own tile tables decide: those of compressed tiles
    are the same only where the pixels are.

    Raises:
        SourceNotFoundError: It is gone.
        SourceChangedError: It is another file now.
    """
    path = local_path(facts.href)
    if path is None:
        return
    try:
        stat = path.stat()
    except OSError:
        raise SourceNotFoundError(facts.href, "there is no such file") from None
    modified = datetime.fromtimestamp(stat.st_mtime_ns // 1000 / 1e6, UTC)
    known = ObjectVersion(size=facts.size, etag=None, last_modified=facts.last_modified)
    change = known.change(size=stat.st_size, etag=None, last_modified=modified)
    if change is None or (stat.st_size == facts.size and _is_copy(manifest, source, facts.href, stat.st_mtime_ns)):
        return
    raise SourceChangedError(facts.href, change)


@functools.lru_cache(maxsize=65536)
def _is_copy(manifest: Manifest, source: int, href: str, mtime_ns: int) -> bool:
    """Whether a file holds the tiles that the manifest knows; `mtime_ns` makes the answer one about this version."""
    del mtime_ns
    if manifest.facts(source).path == "gdal":
        return False
    found, _ = scan_sources([Source(href=href, item=Path(href).stem)])
    return bool(found) and has_same_tiles(manifest, source, found[0])


def has_same_tiles(manifest: Manifest, source: int, scanned: ScannedSource) -> bool:
    """Return whether a file's tile tables are those of the manifest, and say so of its pixels, too."""
    for level, found in enumerate(scanned.header.levels):
        try:
            known = manifest.image(source, level)
        except SourceError:
            return False
        same = (
            (known.width, known.height, known.tile_width, known.tile_height, known.compression, known.predictor)
            == (found.width, found.height, found.tile_width, found.tile_height, found.compression, found.predictor)
            and found.compression != _UNCOMPRESSED
            and np.array_equal(known.offsets, found.offsets.astype("int64"))
            and np.array_equal(known.lengths, found.lengths.astype("int64"))
        )
        if not same:
            return False
    return True
