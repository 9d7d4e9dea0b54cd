"""Every TIFF of a folder against rasterio, pixel for pixel: prints a table of verdicts, paths and reasons.

`python -m scripts.corpus FOLDER` exits with 1 if a file is neither equal nor refused with an error of `cube.errors`.
"""

# ruff: noqa: INP001 - a script, which tests import
from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyproj
import rasterio
import xarray as xr
from rasterio._err import CPLE_BaseError, stack_errors
from rasterio.enums import ColorInterp, MaskFlags, WktVersion
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError

from cube.archive.build import build
from cube.dataset import open_cube
from cube.errors import CubeError
from cube.manifest.open import Manifest

ENDINGS = (".tif", ".tiff")
DEFAULT_CRS = "EPSG:4326"
"""Of files that name none: any does, to compare all else."""
STRIP_PIXELS = 2**22
_GRID_TOLERANCE_PX = 1e-6


class DifferenceError(Exception):
    """A cube that is not what rasterio reads of its file."""


class Verdict(NamedTuple):
    """What came of one file."""

    file: str
    """Relative to the corpus."""
    verdict: Literal["equal", "refused", "different", "crashed"]
    path: str
    """What reads its pixels: "fast" or "gdal", empty where nothing does."""
    reason: str
    """Why GDAL reads it, why it is refused, or what differs."""

    @property
    def is_good(self) -> bool:
        """Whether nobody was told anything wrong."""
        return self.verdict in ("equal", "refused")


def find_files(folder: Path) -> list[Path]:
    """Return the TIFFs below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def judge(path: Path, folder: Path, *, every: int = 1) -> Verdict:
    """Return what comes of one file; `every` is that of `compare`."""
    name, how = path.relative_to(folder).as_posix(), ""
    try:
        manifest, note = build_any(path)
        facts = manifest.source_table().select(["path", "reason"]).to_pylist()[0]
        how = facts["path"]
        compare(manifest, path, every=every)
    except CubeError as error:
        is_sound = how and _gdal_reads(path)
        while_read = "while it was read: " if how else ""
        return Verdict(name, "different" if is_sound else "refused", how, while_read + _reason(error, path))
    except DifferenceError as error:
        return Verdict(name, "different", how, str(error))
    except (RasterioError, CPLE_BaseError) as error:
        return Verdict(name, "different", how, f"rasterio cannot read it: {error}")
    except Exception as error:  # noqa: BLE001 - any other is what this looks for
        return Verdict(name, "crashed", how, repr(error))
    return Verdict(name, "equal", how, "; ".join(filter(None, (facts["reason"], note))))


def build_any(path: Path) -> tuple[Manifest, str]:
    """Return the cube of a file, in an assumed CRS where it names none, and what was assumed, in words.

    Raises:
        CubeError: It cannot be one.
    """
    try:
        return build(path, harmonize=False), ""
    except CubeError as error:
        if "has no coordinate reference system" not in str(error):
            raise
    return build(path, harmonize=False, crs=DEFAULT_CRS), f"names no CRS: {DEFAULT_CRS} was given"


def compare(manifest: Manifest, path: Path, *, every: int = 1, levels: range | None = None) -> None:
    """Compare a cube of one file with what rasterio says of the file and reads from it.

    Args:
        manifest: The cube.
        path: The file.
        every: Compare each n-th of the strips that a level is read in, the last one always.
        levels: Those to compare; all where None.

    Raises:
        DifferenceError: They differ; the message says in what and where.
    """
    with _open(path) as oracle:
        _compare_bands(manifest, oracle)
        scaling = list(zip(oracle.scales, oracle.offsets, strict=True))  # which overviews do not say
    overviews = find_levels(path)
    _require("sizes of levels", [grid.shape for grid in manifest.levels], list(overviews))
    for level in levels or range(len(manifest.levels)):
        with _open(path, overviews[manifest.levels[level].shape]) as oracle:
            # Without xarray's cache: files may have hundreds of millions of pixels.
            options = {"engine": "cube", "level": level, "cache": False}
            stored = xr.open_dataset(manifest.url, mask_and_scale=False, **options)
            compare_place(stored, oracle, is_assumed="crs" in manifest.built)
            for rows in strips(oracle.height, oracle.width, oracle.count)[::-every]:
                where = f"level {level}, rows {rows.start}-{rows.stop - 1}"
                window = ((rows.start, rows.stop), (0, oracle.width))
                compare_pixels(manifest, stored.isel(y=rows).load(), oracle, scaling, window, where)
    _compare_opened(manifest, path)


def find_levels(path: Path) -> dict[tuple[int, int], int]:
    """Return GDAL's number of each level by its (height, width), the largest first; overviews of a size once."""
    found: dict[tuple[int, int], int] = {}
    with _open(path) as oracle:
        numbers = range(1 + len(oracle.overviews(1)))
    for number in numbers:
        with _open(path, number) as image:
            found.setdefault(image.shape, number)
    return dict(sorted(found.items(), reverse=True))


def strips(height: int, width: int, samples: int) -> list[slice]:
    """Return rows in parts that fit into memory."""
    rows = max(1, STRIP_PIXELS // (width * samples))
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def compare_place(dataset: xr.Dataset, oracle: Any, *, is_assumed: bool = False) -> None:
    """Compare shape, coordinates and CRS of a dataset, however it was opened, with rasterio's.

    Args:
        dataset: A whole level.
        oracle: What rasterio opened.
        is_assumed: Whether the CRS was given where the file names none.

    Raises:
        DifferenceError: They differ.
    """
    _require("size", dict(dataset.sizes), {"y": oracle.height, "x": oracle.width})
    a, b, c, d, e, f = tuple(oracle.transform)[:6]
    columns, rows = np.arange(oracle.width) + 0.5, np.arange(oracle.height)[:, np.newaxis] + 0.5
    if b or d:
        found = dataset.xc.values, dataset.yc.values
        wanted = c + a * columns + b * rows, f + d * columns + e * rows
    else:
        found = dataset.x.values, dataset.y.values
        wanted = c + a * columns, (f + e * rows)[:, 0]
    for name, one, other, step in zip("xy", found, wanted, (abs(a) + abs(b), abs(d) + abs(e)), strict=True):
        tolerance = step * _GRID_TOLERANCE_PX + 4 * np.spacing(np.abs(other).max())
        if one.shape != other.shape or np.abs(one - other).max() > tolerance:
            raise DifferenceError(f"{name} coordinates are {one.flat[:3]}..., not {other.flat[:3]}...")
    crs = pyproj.CRS.from_wkt(dataset.spatial_ref.attrs["crs_wkt"])
    # Where GDAL names none, or none on Earth, it was given.
    wanted = DEFAULT_CRS if is_assumed or not oracle.crs else oracle.crs.to_wkt(version=WktVersion.WKT2_2019)
    # GDAL's WKT of a code may be of another method than the code's.
    if crs != pyproj.CRS.from_user_input(wanted) and (
        not oracle.crs or crs.to_authority() != oracle.crs.to_authority()
    ):
        raise DifferenceError(f"CRS: {crs.to_wkt()}, not {wanted}")
    numbers = [float(text) for text in dataset.spatial_ref.attrs["GeoTransform"].split()]
    wanted = oracle.transform.to_gdal()
    if np.abs(np.subtract(numbers, wanted)).max() > max(map(abs, (a, b, d, e))) * _GRID_TOLERANCE_PX:
        raise DifferenceError(f"GeoTransform is {numbers}, not {wanted}")


def compare_pixels(
    manifest: Manifest, stored: xr.Dataset, oracle: Any, scaling: list[tuple[float, float]], window: Any, where: str
) -> None:
    """Compare the same part of a level, stored and decoded, with rasterio's pixels and masks.

    Args:
        manifest: The cube.
        stored: The part, loaded, as it was opened with `mask_and_scale=False`.
        oracle: What rasterio opened of the level.
        scaling: (scale, offset) by band.
        window: The part: ((top, bottom), (left, right)).
        where: What errors call it.

    Raises:
        DifferenceError: They differ.
    """
    decoded = xr.decode_cf(stored, decode_coords=False, decode_times=False)
    samples = range(oracle.count)
    for sample, name, pixels in zip(samples, stored.data_vars, oracle.read(window=window), strict=True):
        valid = oracle.read_masks(sample + 1, window=window) != 0
        of = f"band {name}, {where}"
        band = manifest.band(str(name))
        found = stored[name].values
        if band.nodata is None and _has_nodata(manifest, sample):  # classes keep "no data" as one of them
            valid[:] = True
        _require_equal(f"stored values of {of}", found, pixels, valid)
        if not valid.all():
            _require_equal(f"stored values of {of}", found, np.full_like(found, band.hole), ~valid)
        if found.dtype.kind == "c":  # xarray masks no complex numbers
            continue
        values = decoded[name].values
        is_missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        scale, offset = scaling[sample]
        wanted = pixels * np.float64(scale) + offset
        _require_equal(f"missing pixels of {of}", is_missing, ~valid | np.isnan(wanted))
        tolerance = 2e-6 * np.abs(wanted) + 1e-6 * abs(offset)
        if (scale, offset) == (1.0, 0.0) and values.dtype.itemsize >= found.itemsize:
            tolerance = np.zeros_like(wanted)
        with np.errstate(invalid="ignore"):
            is_near = (values == wanted) | (np.abs(values - wanted) <= tolerance)
        _require_equal(f"closeness of decoded values of {of}", is_near, np.ones_like(is_near), ~is_missing)


def _open(path: Path, level: int = 0) -> Any:
    dataset = rasterio.open(path, **({"OVERVIEW_LEVEL": level - 1} if level else {}))
    with stack_errors():  # rasterio raises at a later call what GDAL says while it opens, of a CRS for one
        pass
    return dataset


def _require(what: str, found: object, wanted: object, more: str = "") -> None:
    if found != wanted:
        raise DifferenceError(f"{what}: {found!r}, not {wanted!r}{more}")


def _compare_bands(manifest: Manifest, oracle: Any) -> None:
    """Compare what is said of the bands, as attributes of the dataset that a user opens."""
    dataset = xr.open_dataset(manifest.url, engine="cube", mask_and_scale=False)
    _require("number of bands", len(dataset.data_vars), oracle.count)
    for number, (name, variable) in enumerate(dataset.data_vars.items()):
        attributes, of = variable.attrs, f" of band {name}"
        _require(f"description{of}", attributes.get("long_name"), oracle.descriptions[number] or None)
        _require(f"units{of}", attributes.get("units"), oracle.units[number] or None)
        _require(f"scale{of}", attributes.get("scale_factor", 1.0), oracle.scales[number])
        _require(f"offset{of}", attributes.get("add_offset", 0.0), oracle.offsets[number])
        flags = oracle.mask_flag_enums[number]
        nodata, wanted = attributes.get("_FillValue"), oracle.nodatavals[number]
        if MaskFlags.nodata in flags and MaskFlags.per_dataset not in flags and nodata is not None:
            _require(f"nodata{of}", repr(float(nodata) + 0.0), repr(float(wanted) + 0.0))
        colours = None
        if oracle.colorinterp[number] == ColorInterp.palette:
            table = oracle.colormap(number + 1)
            colours = " ".join("#" + bytes(table[value]).hex() for value in attributes.get("color_values", ()))
            _require(f"values with colours{of}", attributes.get("color_values"), sorted(table))
        _require(f"colours{of}", attributes.get("colors"), colours)


def _has_nodata(manifest: Manifest, sample: int) -> bool:
    (bands,) = manifest.source_table()["bands"].to_pylist()
    return bands[sample]["nodata"] is not None


def _require_equal(what: str, found: np.ndarray, wanted: np.ndarray, where: np.ndarray | None = None) -> None:
    is_same = found == wanted
    if found.dtype.kind in "fc":
        is_same |= np.isnan(found) & np.isnan(wanted)
    if where is not None:
        is_same |= ~where
    if not is_same.all():
        first = tuple(int(each[0]) for each in np.nonzero(~is_same))
        raise DifferenceError(
            f"{what}: {np.count_nonzero(~is_same)} of {is_same.size} differ, the first at {first}: "
            f"{found[first]!r}, not {wanted[first]!r}"
        )


def _compare_opened(manifest: Manifest, path: Path) -> None:
    """Compare what opens by the file's path alone, and in dask blocks, with the cube."""
    if "crs" in manifest.built:
        return
    size = {"y": slice(0, 64), "x": slice(0, 64)}
    stored = xr.open_dataset(manifest.url, engine="cube", mask_and_scale=False).isel(size)
    for opened in (
        xr.open_dataset(path, engine="cube", mask_and_scale=False),
        open_cube(manifest, chunks={}, mask_and_scale=False),
    ):
        for one, other in zip(opened.isel(size).data_vars.values(), stored.data_vars.values(), strict=True):
            _require_equal("pixels of what is opened otherwise", one.values, other.values)


def _reason(error: CubeError, path: Path) -> str:
    """Return what an error says after the name of the file, which must be in it."""
    _, name, reason = str(error).partition(f"{path.as_posix()}: ")
    return f"{type(error).__name__}: {' '.join((reason if name else str(error)).split())}"


def _gdal_reads(path: Path) -> bool:
    try:
        with _open(path) as oracle:
            for level in range(1 + len(oracle.overviews(1))):
                with _open(path, level) as image:
                    image.read()
                    image.read_masks()
    except (RasterioError, CPLE_BaseError):
        return False
    return True


def table(verdicts: list[Verdict]) -> Iterator[str]:
    """Return the lines of a Markdown table, and a summary."""
    yield "| file | verdict | path | reason |"
    yield "|---|---|---|---|"
    for each in verdicts:
        reason = each.reason.replace("|", "\\|")
        yield f"| {each.file} | {each.verdict} | {each.path} | {reason} |"
    yield ""
    counts = Counter(each.verdict for each in verdicts)
    paths = Counter(each.path for each in verdicts if each.verdict == "equal")
    yield f"{len(verdicts)} files: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
    yield "Equal, by path: " + ", ".join(f"{count} {path}" for path, count in sorted(paths.items()))


def main(arguments: list[str] | None = None) -> int:
    """Judge a corpus, print the table and return the exit code."""
    parser = argparse.ArgumentParser(description="Compare every TIFF of a folder with rasterio.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="compare each n-th strip of large images only")
    parser.add_argument("--to", type=Path, help="a file for the table; printed where left out")
    options = parser.parse_args(arguments)
    for each in NotGeoreferencedWarning, NodataShadowWarning:
        warnings.simplefilter("ignore", each)
    folder = options.folder.resolve()
    paths = find_files(folder)
    if not paths:
        parser.error(f"{folder} holds no {' or '.join(ENDINGS)} file")
    verdicts = []
    for number, path in enumerate(paths, 1):
        verdicts.append(judge(path, folder, every=options.every))
        if sys.stderr.isatty():
            print(f"\r{number} of {len(paths)}", end="", file=sys.stderr)  # noqa: T201 - progress
    text = "\n".join(table(verdicts)) + "\n"
    if options.to is None:
        print(text, end="")  # noqa: T201 - what it is run for
    else:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_text(text, encoding="utf-8")
    bad = [each for each in verdicts if not each.is_good]
    for each in bad:
        print(f"{each.file}: {each.verdict}: {each.reason}", file=sys.stderr)  # noqa: T201 - as above
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
