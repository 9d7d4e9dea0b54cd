"""Results to files: Cloud-Optimized GeoTIFF, Zarr and PNG, each whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cube.errors import CubeError

_TILE = 512
_GAMMA = 0.75
_BRIGHT = 5
"""White in a picture is at most this many times the median's distance from black."""


def write_cog(
    path: str | Path,
    array: xr.DataArray,
    blocks: Iterator[tuple[tuple[slice, ...], np.ndarray]],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write an array of dims ([time,] y, x) as a COG, a band a date, block by block.

    Args:
        path: The file; replaced when the new one is complete.
        array: The lazy array: shape, dtype, grid, names.
        blocks: (slices, values) of all its blocks, in any order.
        progress: Called with the number of blocks written.

    Raises:
        CubeError: The file cannot be written.
    """
    import rasterio
    import rasterio.shutil

    path = Path(path)
    height, width = array.shape[-2:]
    labels = [str(label)[:10] for label in array["time"].values] if "time" in array.dims else [str(array.name)]
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": len(labels),
        "dtype": array.dtype.name,
        "crs": array["spatial_ref"].attrs["crs_wkt"],
        "transform": _transform(array),
        "nodata": np.nan if array.dtype.kind == "f" else None,
        "tiled": True,
        "blockxsize": _TILE,
        "blockysize": _TILE,
        "BIGTIFF": "IF_SAFER",
        "SPARSE_OK": True,
    }
    with _temporary_folder(path) as folder:
        plain, whole = folder / "plain.tif", folder / "whole.tif"
        try:
            with rasterio.open(plain, "w", **profile) as target:
                for i, label in enumerate(labels):
                    target.set_band_description(i + 1, label)
                target.update_tags(long_name=str(array.attrs.get("long_name", "")))
                for done, (place, values) in enumerate(blocks, 1):
                    rows, columns = place[-2:]
                    window = ((rows.start, rows.stop), (columns.start, columns.stop))
                    first = place[0].start if len(place) == 3 else 0
                    stack = values if values.ndim == 3 else values[None]
                    target.write(stack, indexes=[first + i + 1 for i in range(len(stack))], window=window)
                    if progress is not None:
                        progress(done)
            predictor = "FLOATING_POINT" if array.dtype.kind == "f" else "STANDARD"
            rasterio.shutil.copy(
                plain, whole, driver="COG", COMPRESS="DEFLATE", PREDICTOR=predictor, BLOCKSIZE=_TILE, BIGTIFF="IF_SAFER"
            )
            whole.replace(path)
        except (rasterio.errors.RasterioError, OSError) as error:
            raise CubeError(f"{path} cannot be written: {error}") from error


def write_zarr(path: str | Path, dataset: xr.Dataset) -> None:
    """Write a dataset as a Zarr v3 store; an existing store is replaced when the new one is complete.

    Raises:
        CubeError: The store cannot be written, or something else stands in its place.
    """
    path = Path(path)
    if path.exists() and not ((path / "zarr.json").exists() or (path / ".zgroup").exists()):
        raise CubeError(f"{path} is there and is no Zarr store; choose another name")
    with _temporary_folder(path) as folder:
        try:
            with warnings.catch_warnings():
                # Consolidated metadata saves every reader a request an array; zarr warns that v3's text lacks it.
                warnings.filterwarnings("ignore", "Consolidated metadata is currently not part")
                dataset.to_zarr(folder / "whole", mode="w", zarr_format=3, consolidated=True)
            if path.exists():
                path.rename(folder / "old")
            (folder / "whole").rename(path)
        except OSError as error:
            raise CubeError(f"{path} cannot be written: {error}") from error


def write_png(path: str | Path, rgba: np.ndarray) -> None:
    """Write uint8 (rows, columns, 3 or 4) as a PNG.

    Raises:
        CubeError: The file cannot be written.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    path = Path(path)
    bands = np.moveaxis(rgba, -1, 0)
    with _temporary_folder(path) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture has no grid
        profile = {"driver": "PNG", "height": rgba.shape[0], "width": rgba.shape[1], "count": len(bands)}
        try:
            with rasterio.open(folder / "whole.png", "w", dtype="uint8", **profile) as target:
                target.write(bands)
            (folder / "whole.png").replace(path)
        except (rasterio.errors.RasterioError, OSError) as error:
            raise CubeError(f"{path} cannot be written: {error}") from error


def _transform(array: xr.DataArray) -> Any:
    from affine import Affine

    x0, a, b, y0, d, e = (float(value) for value in array["spatial_ref"].attrs["GeoTransform"].split())
    return Affine(a, b, x0, d, e, y0)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path`, on the same file system, so that moving the result into place is atomic."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise CubeError(f"{path} cannot be written: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stretch(bands: Sequence[np.ndarray]) -> np.ndarray:
    """Return uint8 RGBA (rows, columns, 4) of one or three float bands, NaN transparent.

    Stretched from the 2nd percentile to the 98th, or to where outliers begin.
    """
    alpha = np.all([np.isfinite(band) for band in bands], axis=0)
    shown = [np.zeros(alpha.shape, "uint8") for _ in bands]
    if alpha.any():
        # One stretch for all three bands keeps the colours.
        low, middle, high = np.percentile(np.concatenate([band[alpha] for band in bands]), (2, 50, 98))
        # Clouds are ten times brighter than land: let them saturate rather than darken all else.
        high = min(high, low + _BRIGHT * (middle - low)) if middle > low else high
        span = max(high - low, np.finfo("float32").tiny)
        for out, band in zip(shown, bands, strict=True):
            out[alpha] = (np.clip((band[alpha] - low) / span, 0, 1) ** _GAMMA * 255).astype("uint8")
    red, green, blue = shown if len(shown) == 3 else (shown[0],) * 3
    return np.stack([red, green, blue, np.where(alpha, 255, 0).astype("uint8")], axis=-1)


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return uint8 RGBA of values on a brown-yellow-green ramp from `low` to `high`, NaN transparent."""
    stops = np.array([(120, 80, 40), (205, 170, 110), (250, 240, 170), (130, 190, 80), (20, 100, 40)], "float64")
    finite = np.isfinite(values)
    position = np.clip((np.where(finite, values, low) - low) / (high - low), 0, 1)
    grid = np.linspace(0, 1, len(stops))
    channels = [np.interp(position, grid, stops[:, i]).astype("uint8") for i in range(3)]
    return np.stack([*channels, np.where(finite, 255, 0).astype("uint8")], axis=-1)
