"""An archive of COGs, whatever it is named by, to a cube's manifest: `build`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cube.archive.assembly import Options, assemble
from cube.archive.inputs import default_name, find_sources, holds_secret, require_arguments
from cube.errors import BuildError
from cube.io.stores import absolute
from cube.manifest.open import Manifest, open_manifest
from cube.manifest.snapshot import write_manifest
from cube.settings import get_settings
from cube.source import Source

_MOST_SPELLED = 100

type Progress = Callable[[int, int], None]


def build(
    what: Any,
    *,
    name: str | None = None,
    to: str | Path | None = None,
    bands: Sequence[str] | str | None = None,
    pattern: str | None = None,
    bands_as: str | None = None,
    time: bool = True,
    crs: str | None = None,
    harmonize: bool = True,
    fail_on_error: bool = True,
    patch_url: Callable[[str], str] | None = None,
    fill_value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Read the headers of an archive and write its manifest; no pixel is read and none is copied.

    Sources may differ in codec, tiles, data type, nodata, scale and offset: the cube gets one encoding that loses none
    of their values.

    Args:
        what: A folder, a glob, a path or URL of a COG, a STAC ItemCollection, Collection or Catalog (file, URL,
            `pystac` object), Items, a pystac-client search, or a list of such.
        name: Of the cube; the manifest folder's name where None.
        to: The manifest folder; `NAME.cube` in the cache folder where None.
        bands: Names of the bands (or STAC asset keys) to take; all where None.
        pattern: How file names are made, as `{tile}_{band}_{time:%Y%m%d}.tif`; found out from the names where None.
        bands_as: "time:%Y" where the bands of a file are dates, which their descriptions name.
        time: False makes layers without time of sources to which names or catalogues give one.
        crs: Of files that name none, as "EPSG:4326".
        harmonize: Whether to apply what is known of sensors (the offset of Sentinel-2, the scales of Landsat and HLS)
            where the catalogue and the file do not say it.
        fail_on_error: Whether a source that cannot be read fails the build; else it is left out, counted and named.
        patch_url: Applied to each href when it is fetched, to sign it; never stored.
        fill_value: The number that marks missing pixels of integer bands whose files have no nodata value.
        attributes: Of the cube: title, description, license and the like.
        progress: Called with (done, total) as headers arrive.

    Returns:
        The manifest, opened.

    Raises:
        BuildError: No source, sources that cannot be read, or that do not form one cube; names them and says why.
    """
    given = {"name": name, "to": to, "bands": bands, "attributes": attributes}
    require_arguments(**given, patch_url=patch_url, progress=progress)
    require_arguments(pattern=pattern, bands_as=bands_as, crs=crs, fill_value=fill_value)
    require_arguments(time=time, harmonize=harmonize, fail_on_error=fail_on_error)
    bands = [bands] if isinstance(bands, str) else bands
    if bands is not None and not bands:
        raise BuildError("bands=[]: give names of bands, or None for all")
    options = Options(
        bands=None if bands is None else tuple(bands),
        pattern=pattern,
        bands_as=bands_as,
        time=time,
        crs=crs,
        harmonize=harmonize,
        fill_value=fill_value,
        fail_on_error=fail_on_error,
    )
    sources = find_sources(what, bands)
    found = assemble(sources, options, patch_url=patch_url, progress=progress)
    name = name or (Path(to).name.removesuffix(".cube") if to is not None else default_name(what))
    cached = get_settings().cache_dir / "cubes" / f"{name}-{_fingerprint(sources, options)}.cube"
    folder = str(to) if to is not None else str(cached)
    version = write_manifest(
        folder,
        name=name,
        members=found.members,
        bands=found.bands,
        grids=found.grids,
        attributes=found.attributes | dict(attributes or {}),
        built=_spelled(what)
        | options.to_json()
        | ({"inferred": found.inferred} if found.inferred else {})
        | {"sources": digest(each.scanned.source.href for each in found.members)},
        left_out=found.left_out,
    )
    return open_manifest(folder, version)


def _spelled(what: Any) -> dict[str, Any]:
    """Return what can be written down of what a user gave, so that it means the same in another folder."""
    texts = [what] if isinstance(what, (str, Path)) else what
    if isinstance(texts, (list, tuple)) and any(holds_secret(str(each)) for each in texts):
        return {}
    if isinstance(what, (str, Path)):
        return {"what": absolute(str(what))}
    if isinstance(what, (list, tuple)) and len(what) <= _MOST_SPELLED and all(isinstance(e, (str, Path)) for e in what):
        return {"what": [absolute(str(each)) for each in what]}
    return {}


def digest(hrefs: Iterable[str]) -> str:
    """Return a short text that tells sets of sources apart."""
    return hashlib.sha256("\n".join(sorted(hrefs)).encode()).hexdigest()[:12]


def _fingerprint(sources: Sequence[Source], options: Options) -> str:
    described = json.dumps([[source.href for source in sources], options.to_json()])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def count_by_band(manifest: Manifest) -> Counter[str]:
    """Return how many sources give each band."""
    rows = manifest.source_table()["bands"].to_pylist()
    return Counter(band["name"] for bands in rows for band in bands)
