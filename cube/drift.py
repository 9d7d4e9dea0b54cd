"""Whether a source is still what its manifest says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from cube.errors import SourceChangedError, SourceError, SourceNotFoundError
from cube.io.ranges import ObjectVersion
from cube.io.stores import local_path
from cube.manifest.facts import SourceFacts, SourceLevel
from cube.manifest.open import Manifest
from cube.scan import scan_sources
from cube.source import Source
from cube.tiff.header import Header, Level

_UNCOMPRESSED = 1
_SAME_PLACE_PX = 0.01


def version_of(facts: SourceFacts) -> ObjectVersion | None:
    """Return what every answer about a remote source must be of; None for a local one (see `require_unchanged`)."""
    if local_path(facts.href) is not None:
        return None
    return ObjectVersion(size=facts.size, etag=facts.etag, last_modified=facts.last_modified)


def require_unchanged(manifest: Manifest, source: int, facts: SourceFacts) -> None:
    """Refuse to read a local source that was written since it was scanned.

    A remote one is asked with every request. A local one has no ETag that survives a copy of its folder, so the time
    it was modified stands for it; where that differs, the file's header decides: the tile tables of compressed
    tiles are the same only where the pixels are.

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
    modified = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stat.st_mtime_ns // 1000)
    known = ObjectVersion(size=facts.size, etag=None, last_modified=facts.last_modified)
    change = known.change(size=stat.st_size, etag=None, last_modified=modified)
    if change is None or (stat.st_size == facts.size and _is_copy(manifest, source, facts, stat.st_mtime_ns)):
        return
    raise SourceChangedError.because(facts.href, change)


def _is_copy(manifest: Manifest, source: int, facts: SourceFacts, mtime_ns: int) -> bool:
    """Whether a file holds what the manifest knows; a copy is looked into once, until it is written again."""
    if facts.path == "gdal":
        return False
    key = (manifest.url, manifest.version, facts.href, mtime_ns)
    if key not in _copies:
        found, _ = scan_sources([Source(href=facts.href, item=Path(facts.href).stem)])
        if not found or not is_same_header(manifest, source, found[0].header):
            return False
        if len(_copies) >= _MOST_COPIES:
            _copies.clear()
        _copies.add(key)
    return True


_copies: set[tuple[str, str, str, int]] = set()
_MOST_COPIES = 65536


def is_same_header(manifest: Manifest, source: int, header: Header) -> bool:
    """Return whether a file's header is the one that the manifest knows, and so its pixels are."""
    return _is_described(manifest, source, header) and _has_same_tiles(manifest, source, header)


def _is_described(manifest: Manifest, source: int, header: Header) -> bool:
    """Whether the numbers of a file mean what the manifest says, and lie where it says."""
    facts, grid = manifest.facts(source), manifest.grid_of(source)
    names = ["dtype", "byteorder", "samples", "interleave"]
    names += ["photometric", "validity"] if manifest.schema > 1 else []
    if any(getattr(facts, name) != getattr(header, name) for name in names) or header.transform is None:
        return False
    if repr(facts.nodata) != repr(header.nodata):  # NaN is NaN
        return False
    a, b, c, d, e, f = tuple(header.transform)[:6]
    steps = np.array([a, b, d, e]), np.array(grid.transform)[[0, 1, 3, 4]]
    (column,), (row,) = grid.to_pixels(np.array([c]), np.array([f]))
    is_there = max(abs(column - facts.column), abs(row - facts.row)) < _SAME_PLACE_PX
    return is_there and np.allclose(*steps, rtol=1e-6, atol=0)


def _has_same_tiles(manifest: Manifest, source: int, header: Header) -> bool:
    for level, found in enumerate(header.levels):
        try:
            pairs = [(manifest.image(source, level), found)]
            if found.mask is not None:
                pairs.append((manifest.mask(source, level), found.mask))
        except SourceError:
            return False
        if not all(_is_same_image(known, image) for known, image in pairs):
            return False
    return True


def _is_same_image(known: SourceLevel, found: Level) -> bool:
    names = ("width", "height", "tile_width", "tile_height", "compression", "predictor")
    return (
        all(getattr(known, name) == getattr(found, name) for name in names)
        and found.compression != _UNCOMPRESSED
        and np.array_equal(known.offsets, found.offsets.astype("int64"))
        and np.array_equal(known.lengths, found.lengths.astype("int64"))
    )
