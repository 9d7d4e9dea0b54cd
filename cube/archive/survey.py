"""Sources to headers and extents: by our own parser, by GDAL where that alone reads the pixels, or an error each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cube.crs import crs_from_geokeys, crs_from_text, height_unit
from cube.errors import BuildError, HeaderError, NotTiffError, SourceError, UnsupportedSourceError
from cube.gdal.handles import BlockCache
from cube.gdal.read import count_mask_levels, gdal_header
from cube.gdal.sidecars import find_sidecars
from cube.grid import Extent
from cube.io import loop
from cube.io.file import RangeFile
from cube.io.ranges import ObjectVersion, read_head
from cube.io.stores import local_path, sign
from cube.scan import ScannedSource, scan_sources
from cube.source import Source
from cube.tiff.header import GeoKeys

_GDAL_THREADS = 8

type PatchUrl = Callable[[str], str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A source that can be part of a cube."""

    scanned: ScannedSource
    extent: Extent


def survey(
    sources: Sequence[Source],
    *,
    crs: str | None = None,
    patch_url: PatchUrl = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Surveyed], list[SourceError]]:
    """Read the headers of all sources.

    Args:
        sources: What to read.
        crs: Of files that name none, as "EPSG:4326" or WKT.
        patch_url: Applied to each href before it is fetched, to sign it.
        progress: Called with (done, total) as headers arrive.

    Returns:
        The sources that can be part of a cube, in order, and an error for each that cannot, with the reason.

    Raises:
        BuildError: `crs` is none.
    """
    if crs is not None and crs_from_text(crs) is None:
        raise BuildError(f"crs={crs!r} is no coordinate reference system; give EPSG:… or WKT")
    scanned, errors = scan_sources(sources, patch_url=patch_url, progress=progress)
    incomplete = {each.source.href for each in scanned if each.header.transform is None or each.header.geokeys is None}
    sidecars = find_sidecars([each.source.href for each in scanned], incomplete=incomplete)
    results: dict[str, ScannedSource | SourceError] = {each.source.href: each for each in scanned}
    slow: list[tuple[Source, str, ScannedSource | None]] = [
        (each.source, reason, each)
        for each in scanned
        if (reason := sidecars.get(each.source.href) or (None if each.header.refusal else each.header.needs_gdal))
    ]
    by_href = {each.href: each for each in sources}
    other = {error.href: error.reason for error in errors if isinstance(error, NotTiffError)}
    slow += [(by_href[href], "not a TIFF", None) for href in other]
    with ThreadPoolExecutor(_GDAL_THREADS, thread_name_prefix="cube-gdal") as pool:
        found = pool.map(lambda each: _survey_with_gdal(*each, patch_url=patch_url), slow)
        for (source, _, _), result in zip(slow, found, strict=True):
            href = source.href
            results[href] = result
            if isinstance(result, SourceError) and href in other:
                results[href] = HeaderError(href, f"{other[href]}, and {result.reason}")
    return _sort_out(sources, results, errors, crs)


def _sort_out(
    sources: Sequence[Source],
    results: dict[str, ScannedSource | SourceError],
    errors: Sequence[SourceError],
    crs: str | None,
) -> tuple[list[Surveyed], list[SourceError]]:
    good: list[Surveyed] = []
    bad: list[SourceError] = []
    failed = {error.href: error for error in errors}
    for source in sources:
        result = results.get(source.href) or failed[source.href]
        if isinstance(result, SourceError):
            bad.append(result)
            continue
        # Several items may name one file: its header is read for each, but kept by its href.
        result = replace(result, source=source)
        try:
            extent = _extent(result, crs)
        except SourceError as error:
            bad.append(error)
            continue
        geokeys = result.header.geokeys
        if geokeys is not None and (unit := height_unit(geokeys)) is not None:
            units = tuple(each or unit for each in result.header.units)
            result = replace(result, header=replace(result.header, units=units))
        good.append(Surveyed(scanned=result, extent=extent))
    return good, bad


def _survey_with_gdal(
    source: Source, reason: str, known: ScannedSource | None, *, patch_url: PatchUrl
) -> ScannedSource | SourceError:
    href = source.href
    try:
        signed = sign(href, patch_url)
        if known is None:
            head = loop.run(read_head(href, 1, signed=signed))
            size, etag, modified = head.size, head.etag, head.last_modified
        else:
            size, etag, modified = known.size, known.etag, known.last_modified
        file: BlockCache | None = None
        if local_path(href) is None:
            version = ObjectVersion(size=size, etag=etag, last_modified=modified)
            file = BlockCache(RangeFile(href, signed=signed, version=version))
        header = replace(gdal_header(href, file), needs_gdal=reason)
        is_masked = known is not None and all(level.mask is not None for level in known.header.levels)
        if header.validity == "mask" and not is_masked:
            # GDAL calls all pixels of an overview valid where the mask has none of its own, and does not say so.
            header = replace(header, levels=header.levels[: max(1, count_mask_levels(href))])
    except SourceError as error:
        return error
    return ScannedSource(source=source, header=header, size=size, etag=etag, last_modified=modified)


def _extent(scanned: ScannedSource, default: str | None) -> Extent:
    """Return where a source lies.

    Raises:
        UnsupportedSourceError: It has no place on Earth, or not as a grid.
        SourceError: Its catalogue contradicts it.
    """
    href, header = scanned.source.href, scanned.header
    if header.refusal is not None or header.transform is None:
        raise UnsupportedSourceError(href, header.refusal or "has no georeferencing")
    crs = _crs_text(header.geokeys, header.crs_wkt, default)
    if crs is None:
        raise UnsupportedSourceError(
            href,
            "has no coordinate reference system; say which one it is in (build(..., crs=), --crs), or write it into "
            "the file (gdal_edit.py -a_srs EPSG:…)",
        )
    if len(scanned.source.bands) > header.samples:
        raise SourceError(href, f"has {header.samples} bands; its catalogue describes {len(scanned.source.bands)}")
    a, b, c, d, e, f = tuple(header.transform)[:6]
    return Extent(
        href=href,
        crs=crs,
        transform=(a, b, c, d, e, f),
        shapes=tuple((level.height, level.width) for level in header.levels),
    )


@functools.lru_cache(maxsize=4096)
def _crs_text(geokeys: GeoKeys | None, wkt: str | None, default: str | None) -> str | None:
    """Return "EPSG:32633" where the CRS is exactly that, else WKT2; None where there is none on Earth (or Mars)."""
    crs = crs_from_text(wkt) if wkt is not None else crs_from_geokeys(geokeys) if geokeys is not None else None
    if (crs is None or crs.is_engineering) and default is not None:
        crs = crs_from_text(default)
    if crs is None or crs.is_engineering:
        return None
    authority = crs.to_authority(min_confidence=100)
    return ":".join(authority) if authority else str(crs.to_wkt())
