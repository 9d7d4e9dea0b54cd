"""An archive of COGs, whatever it is named by, to a cube's manifest: `build`."""

from __future__ import annotations

import glob
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from cube.bands import variable_name
from cube.conventions import COORDINATES
from cube.crs import crs_from_geokeys
from cube.encoding import Sample, choose_encoding
from cube.errors import BuildError, SourceError, UnsupportedSourceError
from cube.grid import CommonGrid, Extent, common_grid
from cube.io import loop
from cube.io.ranges import read_all
from cube.io.stores import absolute, is_url, redact
from cube.manifest import Manifest, open_manifest
from cube.naming import Fields, Pattern, infer_fields, match_all
from cube.scan import ScannedSource, scan_sources
from cube.settings import get_settings
from cube.snapshot import Member, write_manifest
from cube.source import BandInfo, Source
from cube.spec import Band
from cube.stac import is_stac, parse_stac, sources_from_stac

_TIFF_ENDINGS = (".tif", ".tiff")
_STAC_ENDINGS = (".json", ".geojson")
_MOST_NAMED = 3
_SIGNATURES = frozenset({"sig", "signature", "x-amz-signature", "x-goog-signature", "token", "access_token"})

type Progress = Callable[[int, int], None]


def build(
    what: Any,
    *,
    name: str | None = None,
    to: str | Path | None = None,
    bands: Sequence[str] | str | None = None,
    pattern: str | None = None,
    patch_url: Callable[[str], str] | None = None,
    fill_value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Read the headers of an archive and write its manifest; no pixel is read and none is copied.

    Args:
        what: A folder, a glob, a path or URL of a COG, a STAC ItemCollection (file, URL, `pystac` object), Items, a
            pystac-client search, or a list of such.
        name: Of the cube; the manifest folder's name where None.
        to: The manifest folder; `NAME.cube` in the cache folder where None.
        bands: Names of the bands (or STAC asset keys) to take; all where None.
        pattern: How file names are made, as `{tile}_{band}_{time:%Y%m%d}.tif`; found out from the names where None.
        patch_url: Applied to each href when it is fetched, to sign it; never stored.
        fill_value: The number that marks holes of integer bands whose files have no nodata value.
        attributes: Of the cube: title, description, license and the like.
        progress: Called with (done, total) as headers arrive.

    Returns:
        The manifest, opened.

    Raises:
        BuildError: No source, sources that cannot be read, or that do not form one cube; names them and says why.
    """
    bands = [bands] if isinstance(bands, str) else bands
    if bands is not None and not bands:
        raise BuildError("bands=[]: give names of bands, or None for all")
    sources = list({(each.href, each.item): each for each in _sources(what, bands)}.values())
    if not sources:
        raise BuildError(f"{_describe(what)}: no COG was found; give a folder, a glob, URLs or STAC items of GeoTIFFs")
    _refuse_signed(sources)
    scanned, errors = scan_sources(sources, patch_url=patch_url, progress=progress)
    errors += [error for each in scanned if (error := _refusal(each)) is not None]
    if errors:
        raise _many(errors, len(sources))
    scanned = _named(scanned, pattern)
    taken = _only(scanned, bands) if bands is not None else [list(enumerate(each.source.bands)) for each in scanned]
    scanned = [each for each, wanted in zip(scanned, taken, strict=True) if wanted]
    taken = [wanted for wanted in taken if wanted]
    extents = [_extent(each) for each in scanned]
    grid = common_grid(extents)
    chosen = _choose_bands(scanned, taken, grid, fill_value)
    members = [
        Member(scanned=each, bands=tuple((band.name, i) for i, band in wanted), row=row, column=column)
        for each, wanted, row, column in zip(scanned, taken, grid.rows.tolist(), grid.columns.tolist(), strict=True)
    ]
    name = name or (Path(to).name.removesuffix(".cube") if to is not None else _default_name(what))
    folder = (
        str(to) if to is not None else str(get_settings().cache_dir / "cubes" / f"{name}-{_fingerprint(sources)}.cube")
    )
    version = write_manifest(
        folder, name=name, members=members, bands=chosen, grid=grid, attributes=dict(attributes or {})
    )
    return open_manifest(folder, version)


def _sources(what: Any, bands: Sequence[str] | None) -> Iterable[Source]:
    """Return the sources that `what` names, bands unnamed where only a header or a file name can say."""
    if isinstance(what, (str, Path)):
        return _from_text(str(what), bands)
    if is_stac(what):
        return sources_from_stac(what, bands=bands)
    if isinstance(what, Iterable):
        found: list[Source] = []
        for each in what:
            if not isinstance(each, (str, Path)):
                raise BuildError(
                    f"cannot build a cube from {_describe(each)} in a list; give paths, URLs or STAC Items"
                )
            found += _from_text(str(each), bands)
        return found
    raise BuildError(f"cannot build a cube from {_describe(what)}; give paths, URLs or STAC items")


def _from_text(text: str, bands: Sequence[str] | None) -> Iterable[Source]:
    ending = Path(text.partition("?")[0]).suffix.lower()
    if is_url(text) and not text.startswith("file:"):
        if ending not in _STAC_ENDINGS:
            return [_plain(text)]
        data = loop.run(read_all(text, max_bytes=get_settings().max_manifest_json_bytes))
        return sources_from_stac(parse_stac(data.decode("utf-8", "replace"), text), bands=bands)
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
    return sources_from_stac(path, bands=bands) if ending in _STAC_ENDINGS else [_plain(path.as_posix())]


def _refuse_signed(sources: Sequence[Source]) -> None:
    for source in sources:
        keys = {key.lower() for key, _ in parse_qsl(source.href.partition("?")[2], keep_blank_values=True)}
        if keys & _SIGNATURES:
            raise BuildError(
                f"{redact(source.href)} carries a signature, which a manifest must not keep; give unsigned hrefs, and "
                "patch_url= with the function that signs them"
            )


def _plain(href: str) -> Source:
    return Source(href=href, item=Path(href.partition("?")[0]).stem)


def _refusal(scanned: ScannedSource) -> SourceError | None:
    """Return why a source cannot be part of a cube, or None."""
    href, header = scanned.source.href, scanned.header
    if header.unsupported is not None:
        return UnsupportedSourceError(href, header.unsupported)
    crs = crs_from_geokeys(header.geokeys) if header.geokeys is not None else None
    if crs is None or crs.is_engineering:
        return UnsupportedSourceError(
            href, "has no coordinate reference system; assign one (gdal_edit.py -a_srs EPSG:…)"
        )
    if scanned.source.bands and len(scanned.source.bands) > header.samples:
        return SourceError(href, f"has {header.samples} bands; its catalogue describes {len(scanned.source.bands)}")
    return None


def _many(errors: Sequence[SourceError], total: int) -> BuildError:
    shown = "\n  ".join(str(error) for error in errors[:_MOST_NAMED])
    more = f"\n  and {len(errors) - _MOST_NAMED} more" if len(errors) > _MOST_NAMED else ""
    return BuildError(f"{len(errors)} of {total} sources cannot be part of a cube:\n  {shown}{more}")


def _named(scanned: list[ScannedSource], pattern: str | None) -> list[ScannedSource]:
    """Return the sources with every band named: by STAC, by the pattern, by the names' own logic, by the header."""
    plain = [i for i, each in enumerate(scanned) if not each.source.bands]
    hrefs = [scanned[i].source.href for i in plain]
    if pattern is not None:
        fields = match_all(hrefs, Pattern(pattern))
    elif len(plain) == 1:
        fields = [Fields()]  # one file is its bands; a date in its name is no axis
    else:
        footprints = [_footprint(scanned[i]) for i in plain]
        fields = infer_fields(hrefs, footprints, [scanned[i].header.samples for i in plain])
    named = list(scanned)
    for i, found in zip(plain, fields, strict=True):
        source = named[i].source
        time = source.time if source.time is not None else found.time
        source = replace(source, time=time, bands=_header_bands(scanned[i], found), properties=dict(found.extra))
        named[i] = replace(named[i], source=source)
    for i, each in enumerate(named):
        if len(each.source.bands) < each.header.samples:
            named[i] = replace(each, source=replace(each.source, bands=_all_samples(each)))
    return named


def _footprint(scanned: ScannedSource) -> tuple[object, ...]:
    """Return the ground that a source covers, the same for bands of other resolutions."""
    extent = _extent(scanned)
    a, _, c, _, e, f = extent.transform
    height, width = extent.shapes[0]
    return (extent.crs, *(round(edge, 5) for edge in (c, f, c + a * width, f + e * height)))


def _all_samples(scanned: ScannedSource) -> tuple[BandInfo, ...]:
    """Return a band for every sample, where the catalogue describes fewer than the file has."""
    source, samples = scanned.source, scanned.header.samples
    described = source.bands
    if len(described) == 1 < samples:
        return tuple(replace(described[0], name=f"{described[0].name}_{i + 1}", aliases=()) for i in range(samples))
    asset = source.asset or source.item
    return (*described, *(BandInfo(name=f"{asset}_{i + 1}") for i in range(len(described), samples)))


def _only(scanned: list[ScannedSource], bands: Sequence[str]) -> list[list[tuple[int, BandInfo]]]:
    """Return the wanted (sample, band) pairs of each source.

    Raises:
        BuildError: A band that no source has.
    """
    known = {name for each in scanned for band in each.source.bands for name in (band.name, *band.aliases)}
    unknown = [band for band in bands if band not in known]
    if unknown:
        names = sorted({band.name for each in scanned for band in each.source.bands})
        raise BuildError(f"bands {', '.join(unknown)} were asked for; the sources have {', '.join(names)}")
    return [
        [(i, band) for i, band in enumerate(each.source.bands) if not {band.name, *band.aliases}.isdisjoint(bands)]
        for each in scanned
    ]


def _header_bands(scanned: ScannedSource, fields: Fields) -> tuple[BandInfo, ...]:
    header = scanned.header
    if header.samples == 1 and fields.band is not None:
        name = fields.band if fields.band.isidentifier() else variable_name(fields.band)
        return (BandInfo(name=name, aliases=() if name == fields.band else (fields.band,)),)
    described = [text.strip() if text else "" for text in header.descriptions]
    usable = all(text.isidentifier() for text in described) and len(set(described)) == len(described)
    usable = usable and COORDINATES.isdisjoint(described)
    names = described if usable else [f"band_{i + 1}" for i in range(header.samples)]
    prefix = f"{fields.band}_" if fields.band is not None else ""
    return tuple(BandInfo(name=prefix + name) for name in names)


def _extent(scanned: ScannedSource) -> Extent:
    header = scanned.header
    if header.transform is None or header.geokeys is None:
        raise UnsupportedSourceError(scanned.source.href, "has no georeferencing")
    a, b, c, d, e, f = tuple(header.transform)[:6]
    crs = crs_from_geokeys(header.geokeys)
    return Extent(
        href=scanned.source.href,
        crs=_crs_text(crs),
        transform=(a, b, c, d, e, f),
        shapes=tuple((level.height, level.width) for level in header.levels),
    )


def _crs_text(crs: Any) -> str:
    """Return "EPSG:32633" where the CRS is exactly that, else WKT2."""
    cached = _crs_texts.get(crs)
    if cached is None:
        authority = crs.to_authority(min_confidence=100)
        cached = _crs_texts[crs] = ":".join(authority) if authority else crs.to_wkt()
    return cached


_crs_texts: dict[Any, str] = {}


def _choose_bands(
    scanned: Sequence[ScannedSource],
    taken: Sequence[Sequence[tuple[int, BandInfo]]],
    grid: CommonGrid,
    fill_value: float | None,
) -> list[Band]:
    """Return the bands in order of first appearance, each with its one encoding; refuses overlaps and mixed time."""
    dated = sum(each.source.time is not None for each in scanned)
    if 0 < dated < len(scanned):
        undated = next(each.source.href for each in scanned if each.source.time is None)
        raise BuildError(f"{dated} of {len(scanned)} sources have a time and {undated} has none; build a cube of each")
    samples: dict[str, list[Sample]] = defaultdict(list)
    places: dict[str, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, (each, wanted) in enumerate(zip(scanned, taken, strict=True)):
        for index, info in wanted:
            samples[info.name].append(Sample(scanned=each, index=index, info=info))
            places[info.name][each.source.time].append(i)
    times: list[Any] = sorted({each.source.time for each in scanned if each.source.time is not None})
    boxes = _boxes(scanned, grid)
    chosen = []
    for name, members in samples.items():
        if name in COORDINATES:
            raise BuildError(
                f"a band of {members[0].scanned.source.href} is called {name!r}, as a coordinate of the cube is; "
                "name it by a pattern (pattern=, --pattern), or leave it out with `bands`"
            )
        holes = []
        for time in times or [None]:
            here = places[name].get(time, [])
            _refuse_overlaps(name, time, here, boxes, scanned)
            area = sum((boxes[i, 2] - boxes[i, 0]) * (boxes[i, 3] - boxes[i, 1]) for i in here)
            if area < grid.levels[0].width * grid.levels[0].height:
                holes.append(str(time)[:19] if time is not None else "parts of the grid that no file covers")
        chosen.append(choose_encoding(name, members, fill_value=fill_value, holes=holes))
    return chosen


def _boxes(scanned: Sequence[ScannedSource], grid: CommonGrid) -> np.ndarray:
    """Return (left, top, right, bottom) of each source in pixels of the grid, float64 (sources, 4)."""
    sizes = np.array([(each.header.levels[0].width, each.header.levels[0].height) for each in scanned], "float64")
    corners = np.stack([grid.columns, grid.rows], axis=1).astype("float64")
    return np.concatenate([corners, corners + sizes], axis=1)


def _refuse_overlaps(
    name: str, time: Any, here: Sequence[int], boxes: np.ndarray, scanned: Sequence[ScannedSource]
) -> None:
    if len(here) < 2:
        return
    import shapely

    mine = boxes[list(here)]
    # A quarter of a pixel smaller on each side: neighbours that share an edge do not overlap.
    shapes = shapely.box(mine[:, 0] + 0.25, mine[:, 1] + 0.25, mine[:, 2] - 0.25, mine[:, 3] - 0.25)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    clash = np.flatnonzero(one < other)
    if len(clash):
        first, second = (scanned[here[int(side[clash[0]])]].source.href for side in (one, other))
        when = f" at {str(time)[:19]}" if time is not None else ""
        raise BuildError(
            f"band {name!r}{when} comes from two overlapping sources, {first} and {second}; overlaps are not fused "
            "yet: leave one out, or tell bands and times apart with a pattern (pattern=, --pattern)"
        )


def _describe(what: Any) -> str:
    return str(what) if isinstance(what, (str, Path)) else f"a {type(what).__name__}"


def _default_name(what: Any) -> str:
    text = str(what[0]) if isinstance(what, (list, tuple)) and what else str(what)
    stem = Path(text.partition("?")[0].rstrip("/*")).stem if isinstance(what, (str, Path, list, tuple)) else ""
    cleaned = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem).strip("-")
    return cleaned[:60] or "cube"


def _fingerprint(sources: Sequence[Source]) -> str:
    return hashlib.sha256(json.dumps([source.href for source in sources]).encode()).hexdigest()[:12]


def count_by_band(manifest: Manifest) -> Counter[str]:
    """Return how many sources give each band."""
    rows = manifest.source_table()["bands"].to_pylist()
    return Counter(band["name"] for bands in rows for band in bands)
