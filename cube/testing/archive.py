"""A synthetic Sentinel-2-like archive: COGs, the STAC items that describe them, and the answers that they must give."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cube.errors import CubeError, SelectionError
from cube.testing import landscape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from affine import Affine
    from numpy.typing import DTypeLike, NDArray

    Floats = NDArray[np.float32]

DATES = ("2024-04-09", "2024-04-24", "2024-05-09", "2024-05-19", "2024-05-29", "2024-06-18", "2024-07-13", "2024-08-12")
ASSETS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "scl": "scl"}
"""Common names, which file names have too -> asset keys."""
CLEAR = (2, 4, 5, 6, 7, 11)
"""The SCL classes that are neither nodata, defective, shadow, cloud nor cirrus."""
_CLASSES = ("no_data", "saturated_or_defective", "dark_area", "cloud_shadow", "vegetation", "not_vegetated", "water",
            "unclassified", "cloud_medium_probability", "cloud_high_probability", "thin_cirrus", "snow")  # fmt: skip
_CORNER = (399960.0, 5400000.0)  # of MGRS tile 33UVP
_MARKER = "archive.json"
_WORKERS = min(4, os.cpu_count() or 1)
_COG = "image/tiff; application=geotiff; profile=cloud-optimized"


def write_cog(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    *,
    crs: str = "EPSG:32633",
    transform: Affine | None = None,
    nodata: float | None = None,
    scale: float | None = None,
    offset: float | None = None,
    descriptions: Sequence[str] = (),
    driver: Literal["COG", "GTiff"] = "COG",
    **creation: Any,
) -> Path:
    """Write a (y, x) or (band, y, x) array as a tiled GeoTIFF and return its path, whose folder is made if need be.

    `creation` are the driver's options; left alone, the file is deflate with a predictor, in tiles of 512. The default
    `transform` is 10 m pixels from the corner of MGRS tile 33UVP.
    """
    import rasterio

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = array if array.ndim == 3 else array[None]
    options: dict[str, Any] = {"compress": "DEFLATE"} | creation
    if options["compress"] in {"DEFLATE", "LZW", "ZSTD"} and array.dtype.kind in "iuf":
        floating = array.dtype.kind == "f"
        options.setdefault("predictor", ("YES" if driver == "COG" else 3 if floating else 2))
    for name in ("blocksize",) if driver == "COG" else ("blockxsize", "blockysize"):
        options.setdefault(name, 512)
    if driver == "GTiff":
        options.setdefault("tiled", True)
    count, height, width = bands.shape
    shape = {"count": count, "height": height, "width": width, "dtype": array.dtype.name}
    transform = _transform() if transform is None else transform
    with rasterio.open(
        path, "w", driver=driver, crs=crs, transform=transform, nodata=nodata, **shape, **options
    ) as out:
        if scale is not None:
            out.scales = (scale,) * count
        if offset is not None:
            out.offsets = (offset,) * count
        for number, description in enumerate(descriptions, start=1):
            out.set_band_description(number, description)
        out.write(bands)
    return path


def unique_values(shape: tuple[int, ...], dtype: DTypeLike, seed: int = 0) -> NDArray[Any]:
    """Return an array whose elements all differ, in random order and none 0, so that a misplaced one is identified.

    Where `dtype` has too few values they repeat, as far apart in the order as can be. Signed types have negative ones.
    """
    kind, count = np.dtype(dtype), int(np.prod(shape))
    # Counted in int64, which no array's size passes.
    limit = min(np.iinfo(kind).max, np.iinfo("int64").max) if kind.kind in "iu" else 2 ** np.finfo(kind).nmant
    order = np.random.default_rng(seed).permutation(count)
    values = order % limit + 1 if kind.kind == "u" else (order // 2 % limit + 1) * (1 - 2 * (order % 2))
    return values.astype(kind).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A written archive and what it must give; nothing here reads a COG back."""

    root: Path
    size: int
    dates: tuple[np.datetime64, ...]
    """Days, in order."""
    seed: int
    tile: int

    @property
    def items(self) -> Path:
        """The STAC ItemCollection that describes the archive."""
        return self.root / "items.json"

    @property
    def transform(self) -> Affine:
        """Pixel corner to EPSG:32633, 10 m."""
        return _transform()

    def path(self, date: str | np.datetime64, band: str) -> Path:
        """Return the COG of a band (a key of `ASSETS`) on a date."""
        return self.root / _file_name(np.datetime64(date, "D"), band)

    def expected(self, date: str | np.datetime64, band: str) -> NDArray[Any]:
        """Return the (y, x) stored numbers of a band on a date: uint16 DN, uint8 for scl, 0 is nodata."""
        return landscape.make_scene(self.size, self.seed, np.datetime64(date, "D"), [band])[band]

    def truth_ndvi_composite(self, freq: Literal["MS"] | None = None) -> tuple[NDArray[np.datetime64], Floats]:
        """Return the cloud-masked median NDVI of all dates, or of each month from the first date's to the last's.

        NDVI of a date is (nir - red) / (nir + red) of the reflectances DN * 0.0001 - 0.1, which is exactly
        (N - R) / (N + R - 2000) of the DN, in float64. It counts where both DN are above 0 and the SCL is in `CLEAR`.
        The median over the dates that count is the middle one, or the mean of the two middle ones in float64, then
        rounded to float32; NaN where none counts. Float64 arithmetic gives the same to one float32 rounding (1.2e-7);
        in float32, reflectances of a few hundredths leave 1e-5.

        Returns:
            The first date (or the first days of the months) and the (period, y, x) float32 medians.
        """
        if freq not in {None, "MS"}:
            raise SelectionError(f"a composite by {freq!r} was asked for; the truth is known for freq='MS' and None")
        months = np.array(self.dates, "M8[M]")
        labels = np.arange(months[0], months[-1] + np.timedelta64(1, "M")) if freq else months[:1]
        landscape.make_landscape(self.size, self.seed)
        with ThreadPoolExecutor(_WORKERS) as pool:
            pairs = list(pool.map(self._clear_pair, self.dates))
        out = np.full((len(labels), self.size, self.size), np.nan, np.float32)
        for index, label in enumerate(labels):
            stack = [pair for pair, month in zip(pairs, months, strict=True) if not freq or month == label]
            for rows in landscape.strips(self.size) if stack else ():
                red, nir = np.array([[r[rows], n[rows]] for r, n in stack]).swapaxes(0, 1).astype(np.float64)
                out[index, rows] = _median((nir - red) / np.where(red > 0, nir + red - 2000, np.nan))
        return (labels if freq else np.array(self.dates[:1])).astype("M8[ns]"), out

    def _clear_pair(self, date: np.datetime64) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Return red and nir of a date, 0 in both where it does not count."""
        made = landscape.make_scene(self.size, self.seed, date, ["red", "nir", "scl"])
        clear = np.isin(made["scl"], CLEAR) & (made["red"] > 0) & (made["nir"] > 0)
        return made["red"] * clear, made["nir"] * clear


def _median(stack: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median along the first axis of what is not NaN; numpy.nanmedian takes ten times as long."""
    ordered = np.sort(stack, axis=0)  # NaN last
    count = np.count_nonzero(~np.isnan(ordered), axis=0)
    low, high = (
        np.take_along_axis(ordered, place[None], 0)[0] for place in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    middle: NDArray[np.float64] = (low + np.where(count % 2, low, high)) / 2
    return middle


def write_archive(
    root: str | os.PathLike[str],
    *,
    size: int = 2048,
    dates: Sequence[str | np.datetime64] = DATES,
    seed: int = 0,
    tile: int = 512,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Archive:
    """Write a synthetic archive of one growing season and return it; one that is already there is used as it is.

    Each date has five COGs of `size` x `size` pixels in EPSG:32633 (red, green, blue, nir: uint16 with GDAL scale
    0.0001 and offset -0.1; scl: uint8 classes; nodata 0), in `root`/DATE/T33UVP_DATE_BAND.tif; `root`/items.json is
    their STAC ItemCollection. The same arguments give the same pixels. `progress` gets (files done, files in all),
    from the threads that write, one call at a time.

    Raises:
        CubeError: `root` holds an archive that was made with other arguments.
    """
    days = tuple(sorted({np.datetime64(date, "D") for date in dates}))
    if not days:
        raise CubeError(f"an archive was to be written to {root} with no dates; give at least one")
    archive = Archive(root=Path(root).absolute(), size=size, dates=days, seed=seed, tile=tile)
    files = [archive.path(day, band) for day in days for band in ASSETS]
    lock, done = threading.Lock(), 0

    def count(files_written: int = 1) -> None:
        nonlocal done
        with lock:
            done += files_written
            if progress:
                progress(done, len(files))

    if _is_complete(archive, files):
        count(len(files))
        return archive
    archive.root.mkdir(parents=True, exist_ok=True)
    _write_marker(archive, [])
    landscape.make_landscape(size, seed)
    pool = ThreadPoolExecutor(workers or _WORKERS)
    try:
        items = list(pool.map(lambda day: _write_date(archive, day, count), days))
    finally:
        pool.shutdown(cancel_futures=True)
    collection = json.dumps({"type": "FeatureCollection", "features": items}, indent=1)
    archive.items.write_text(collection, encoding="utf-8")
    _write_marker(archive, [*files, archive.items])
    return archive


def _arguments(archive: Archive) -> dict[str, Any]:
    return {
        "size": archive.size,
        "dates": [str(day) for day in archive.dates],
        "seed": archive.seed,
        "tile": archive.tile,
    }


def _recipe() -> str:
    """Return what, besides the arguments, the pixels depend on: this code, and the arithmetic of numpy and the CPU."""
    code = b"".join(Path(str(module)).read_bytes() for module in (__file__, landscape.__file__))
    return f"{hashlib.sha256(code).hexdigest()} numpy-{np.__version__} {platform.machine()}"


def _write_marker(archive: Archive, files: list[Path]) -> None:
    sizes = {file.relative_to(archive.root).as_posix(): file.stat().st_size for file in files}
    marker = json.dumps({"arguments": _arguments(archive), "recipe": _recipe(), "sizes": sizes}, indent=1)
    part = archive.root / f"{_MARKER}.part"
    part.write_text(marker, encoding="utf-8")
    part.replace(archive.root / _MARKER)


def _is_complete(archive: Archive, files: list[Path]) -> bool:
    """Whether the root holds the archive, whole; an error where it holds one of other arguments."""
    marker = archive.root / _MARKER
    if not marker.exists():
        return False
    found = json.loads(marker.read_text(encoding="utf-8"))
    if found["arguments"] != _arguments(archive):
        raise CubeError(
            f"an archive with {_arguments(archive)} was to be written to {archive.root}, which holds one with "
            f"{found['arguments']}; choose another folder or delete that one"
        )
    sizes = {name: size for name, size in found["sizes"].items() if _size(archive.root / name) == size}
    return found["recipe"] == _recipe() and len(sizes) == len(files) + 1


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1


def _write_date(archive: Archive, day: np.datetime64, count: Callable[[], None]) -> dict[str, Any]:
    """Write the COGs of one date and return its STAC item."""
    made = landscape.make_scene(archive.size, archive.seed, day, ASSETS)
    for band in ASSETS:
        options: dict[str, Any] = {"blocksize": archive.tile, "nodata": 0, "descriptions": [band]}
        if band == "scl":
            options |= {"overview_resampling": "NEAREST"}
        else:
            options |= {"overview_resampling": "AVERAGE", "scale": landscape.SCALE, "offset": landscape.OFFSET}
        write_cog(archive.path(day, band), made[band], **options)
        count()
    cloudy = int(np.count_nonzero(np.isin(made["scl"], (8, 9, 10))))
    return _item(archive, day, round(100 * cloudy / max(1, int(np.count_nonzero(made["scl"]))), 2))


def _item(archive: Archive, day: np.datetime64, cloud_cover: float) -> dict[str, Any]:
    """Return the STAC item of one date, with hrefs relative to items.json."""
    footprint = _footprint(archive, day)
    longitudes, latitudes = zip(*footprint, strict=True)
    extensions = ("eo/v1.1.0", "raster/v1.1.0", "projection/v1.2.0", "classification/v2.0.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in extensions],
        "id": f"S2A_33UVP_{_compact(day)}_0_L2A",
        "collection": "synthetic-s2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [footprint]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": f"{day}T10:10:31Z",
            "title": f"Synthetic Sentinel-2 L2A scene of tile 33UVP on {day}",
            "platform": "sentinel-2a",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "gsd": 10,
            "license": "CC0-1.0",
            "eo:cloud_cover": cloud_cover,
            "proj:code": "EPSG:32633",
            "proj:shape": [archive.size, archive.size],
            "proj:transform": list(archive.transform)[:6],
            "s2:mgrs_tile": "33UVP",
            "s2:processing_baseline": "05.10",
        },
        "links": [],
        "assets": {key: _asset(day, band, key) for band, key in ASSETS.items()},
    }


def _asset(day: np.datetime64, band: str, key: str) -> dict[str, Any]:
    asset = {"href": f"./{_file_name(day, band)}", "type": _COG, "title": f"{key} ({band})", "roles": ["data"]}
    if band == "scl":
        classes = [{"value": value, "name": name} for value, name in enumerate(_CLASSES)]
        raster = {"data_type": "uint8", "nodata": 0, "spatial_resolution": 10}
        return asset | {"raster:bands": [raster], "classification:classes": classes}
    physical = {"scale": landscape.SCALE, "offset": landscape.OFFSET, "unit": "1"}
    raster = {"data_type": "uint16", "nodata": 0, "spatial_resolution": 10} | physical
    return asset | {"eo:bands": [{"name": key, "common_name": band}], "raster:bands": [raster]}


def _footprint(archive: Archive, day: np.datetime64) -> list[list[float]]:
    """Return the closed ring, counter-clockwise in longitude and latitude, around the pixels with data."""
    from pyproj import Transformer
    from shapely import Polygon, box
    from shapely.geometry.polygon import orient

    size = archive.size
    top, bottom, side = landscape.swath_edge(size, archive.seed, day)
    far = 3.0 * size * side
    swath = box(0, 0, size, size) & Polygon([(top, 0), (far, 0), (far, size), (bottom, size)])
    bare = landscape.BARE_CORNER * size
    ring = (swath - Polygon([(0, 0), (bare, 0), (0, bare)])).exterior
    columns, rows = np.array(ring.coords).T
    to_degrees = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform
    points = to_degrees(_CORNER[0] + 10 * columns, _CORNER[1] - 10 * rows)
    corners = orient(Polygon(np.round(np.transpose(points), 7))).exterior.coords
    return [[float(longitude), float(latitude)] for longitude, latitude in corners]


def _transform() -> Affine:
    from affine import Affine

    return Affine(10.0, 0.0, _CORNER[0], 0.0, -10.0, _CORNER[1])


def _compact(day: np.datetime64) -> str:
    return str(day).replace("-", "")


def _file_name(day: np.datetime64, band: str) -> str:
    return f"{_compact(day)}/T33UVP_{_compact(day)}_{band}.tif"
