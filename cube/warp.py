"""An array on one grid to an array on another: nearest, bilinear, cubic, average, as GDAL defines them; pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_ENOUGH = 1e-6
"""Of the weights of all neighbours: with less, a pixel has no value (GDAL's number)."""

_FAR = 2.0**40

REACH = {"nearest": 0, "bilinear": 1, "cubic": 2, "average": 1}
"""Source pixels beyond a target pixel's own place that each way of resampling looks at."""

type Sampler = Callable[[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Called with pixels, which of them are valid (None: all), columns and rows; gives float values and validity."""


def resample(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    columns: np.ndarray,
    rows: np.ndarray,
    how: str,
    *,
    nodata: float | None,
    fill: float,
    around: float = np.inf,
    torn: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what lies at some places of an image, and whether anything does.

    Args:
        pixels: (height, width).
        valid: bool, of the same shape; all where None.
        columns: Fractional positions, which with `rows` broadcast to the result's shape: of pixel centres, or of pixel
            corners (one more a row and column) where `how` is "average". (0, 0) is the image's outer corner.
        rows: See `columns`.
        how: "nearest", "bilinear", "cubic" or "average".
        nodata: A number that no result may be: it becomes the one beside it (as GDAL does).
        fill: What the result has where there is nothing.
        around: Columns from a meridian around the Earth to itself: a pixel whose corners lie more than half of that
            apart lies across the image's edges, the short way around ("average").
        torn: bool, of the result's shape: pixels whose corners do not say what is between them ("average").

    Returns:
        An array of the pixels' dtype, and a bool array, True where there is a value.
    """
    if how == "nearest":
        return _nearest(pixels, valid, columns, rows, fill)
    # Sums of products of small integers are exact enough in single precision, at half of the memory.
    small = pixels.dtype.kind in "iu" and pixels.dtype.itemsize <= 2
    weighed = np.zeros(pixels.shape, "float32" if small else "float64")
    np.copyto(weighed, pixels, where=True if valid is None else valid)
    if how == "average":
        found, there = _average(weighed, valid, columns, rows, around, torn)
    else:
        found, there = _SAMPLERS[how](weighed, valid, columns, rows)
    return to_stored(found, there, pixels.dtype, nodata, fill), there


def find_pixels(columns: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return in which pixels of an image positions lie (intp, by row), and which lie on it: all where None.

    Of those that do not, the pixel is any of the image's.
    """
    height, width = shape
    with np.errstate(invalid="ignore"):
        ends = [f(each) for each in (columns, rows) for f in (np.min, np.max)]
    if ends[0] >= 0 and ends[1] < width and ends[2] >= 0 and ends[3] < height:
        inside = None
    else:
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        columns = np.clip(np.where(np.isfinite(columns), columns, 0), 0, width - 1)
        rows = np.clip(np.where(np.isfinite(rows), rows, 0), 0, height - 1)
    # Positions are not negative: to cut off their fractions is to round down.
    at = rows.astype(np.intp) * width + columns.astype(np.intp)
    return at, inside


def _nearest(
    pixels: np.ndarray, valid: np.ndarray | None, columns: np.ndarray, rows: np.ndarray, fill: float
) -> tuple[np.ndarray, np.ndarray]:
    at, inside = find_pixels(columns, rows, pixels.shape)
    found = pixels.ravel().take(at, mode="clip")
    there = np.ones(at.shape, bool) if inside is None else np.broadcast_to(inside, at.shape).copy()
    if valid is not None:
        there &= valid.ravel().take(at, mode="clip")
    found[~there] = fill
    return found, there


def _find(columns: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return which positions lie on an image, and in which of its pixels (intp, by row)."""
    at, inside = find_pixels(columns, rows, shape)
    return np.ones(at.shape, bool) if inside is None else np.broadcast_to(inside, at.shape).copy(), at


def _bilinear(
    pixels: np.ndarray, valid: np.ndarray | None, columns: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    height, width = pixels.shape
    inside, nearest = _find(columns, rows, pixels.shape)
    if valid is not None:
        inside &= valid.ravel()[nearest]  # as in GDAL, data does not grow into what is missing
    x0, fx = _split(columns)
    y0, fy = _split(rows)
    total = np.zeros(inside.shape, pixels.dtype)
    weights = np.zeros(inside.shape, pixels.dtype)
    flat, mask = pixels.ravel(), None if valid is None else valid.ravel()
    for dy, wy in ((0, 1 - fy), (1, fy)):
        y = y0 + dy
        for dx, wx in ((0, 1 - fx), (1, fx)):
            x = x0 + dx
            weight = (wy * wx) * ((x >= 0) & (x < width) & (y >= 0) & (y < height) & inside)
            at = np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1)
            if mask is not None:
                weight = weight * mask[at]
            total += (weight * flat[at]).astype(pixels.dtype, copy=False)
            weights += weight.astype(pixels.dtype, copy=False)
    there = weights > _ENOUGH
    np.divide(total, weights, out=total, where=there)
    return total, there


def _cubic(
    pixels: np.ndarray, valid: np.ndarray | None, columns: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Catmull-Rom's kernel over 4 x 4 neighbours; bilinear where one of them is missing, as GDAL does it."""
    found, there = _bilinear(pixels, valid, columns, rows)
    height, width = pixels.shape
    x0, fx = _split(columns)
    y0, fy = _split(rows)
    whole = (x0 >= 1) & (x0 < width - 2) & (y0 >= 1) & (y0 < height - 2) & there
    x0, y0, fx, fy = (np.broadcast_to(each, whole.shape)[whole] for each in (x0, y0, fx, fy))
    flat = pixels.ravel()
    if valid is not None and whole.any():
        complete = _complete(valid).ravel()[y0 * width + x0]
        whole[whole] = complete
        x0, y0, fx, fy = (each[complete] for each in (x0, y0, fx, fy))
    of_x, of_y = _kernel(fx), _kernel(fy)
    total = np.zeros(len(x0), pixels.dtype)
    for j in range(4):
        line = np.zeros(len(x0), pixels.dtype)
        start = (y0 + (j - 1)) * width + x0 - 1
        for i in range(4):
            line += (of_x[i] * flat[start + i]).astype(pixels.dtype, copy=False)
        total += (of_y[j] * line).astype(pixels.dtype, copy=False)
    found[whole] = total
    return found, there


def _average(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    columns: np.ndarray,
    rows: np.ndarray,
    around: float,
    torn: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of what lies between a pixel's first and last corner, by area.

    Neighbour by neighbour: sums from the image's corner would take fewer steps where pixels are much larger, but round
    otherwise in each window.
    """
    columns, rows = np.broadcast_arrays(columns, rows)
    first, last = (columns[:-1, :-1], rows[:-1, :-1]), (columns[1:, 1:], rows[1:, 1:])
    known = np.isfinite(first[0]) & np.isfinite(first[1]) & np.isfinite(last[0]) & np.isfinite(last[1])
    if torn is not None:
        known &= ~torn
    left, right, top, bottom = (
        np.where(known, f(first[axis], last[axis]), 0.0) for axis in (0, 1) for f in (np.fmin, np.fmax)
    )
    total, area = np.zeros(known.shape), np.zeros(known.shape)
    across = right - left > around / 2
    if across.any():
        left, right = np.where(across, right, left), np.where(across, left + around, right)
        _add_boxes(pixels, valid, (left - around, right - around, top, bottom), total, area)
    _add_boxes(pixels, valid, (left, right, top, bottom), total, area)
    there = area > _ENOUGH
    return np.divide(total, area, out=total, where=there), there


def _add_boxes(
    pixels: np.ndarray,
    valid: np.ndarray | None,
    boxes: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    total: np.ndarray,
    area: np.ndarray,
) -> None:
    """Add what lies in each box (left, right, top, bottom) of an image, by area."""
    height, width = pixels.shape
    left, right, top, bottom = (np.clip(e, 0, n) for e, n in zip(boxes, (width, width, height, height), strict=True))
    x0, y0 = np.floor(left).astype("int64"), np.floor(top).astype("int64")
    wide, tall = (int(np.ceil(end - start).max(initial=0)) for start, end in ((x0, right), (y0, bottom)))
    flat, mask = pixels.ravel(), None if valid is None else valid.ravel()
    for j in range(tall):
        y = y0 + j
        of_y = np.clip(np.minimum(bottom, y + 1) - np.maximum(top, y), 0, None)
        line = np.minimum(y, height - 1) * width
        for i in range(wide):
            x = x0 + i
            weight = of_y * np.clip(np.minimum(right, x + 1) - np.maximum(left, x), 0, None)
            at = line + np.minimum(x, width - 1)
            if mask is not None:
                weight *= mask[at]
            total += weight * flat[at]
            area += weight


_SAMPLERS: dict[str, Sampler] = {"bilinear": _bilinear, "cubic": _cubic}


def _split(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel whose centre is at or before each position, int64, and how far beyond it the position is."""
    # What is far off is not there; its distance need not fit into an integer.
    shifted = np.clip(np.where(np.isfinite(at), at, -2.0), -2.0, _FAR) - 0.5
    first = np.floor(shifted)
    return first.astype("int64"), shifted - first


def _kernel(t: np.ndarray) -> list[np.ndarray]:
    """Return the weights of four neighbours (Keys 1981, a = -1/2)."""
    return [
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    ]


def _complete(valid: np.ndarray) -> np.ndarray:
    """Return where a pixel, the one before it and the two after it are valid along both axes."""
    found = np.zeros_like(valid)
    if min(valid.shape) >= 4:
        lines = valid[:, :-3] & valid[:, 1:-2] & valid[:, 2:-1] & valid[:, 3:]
        found[1:-2, 1:-2] = lines[:-3] & lines[1:-2] & lines[2:-1] & lines[3:]
    return found


def to_stored(values: np.ndarray, there: np.ndarray, dtype: np.dtype, nodata: float | None, fill: float) -> np.ndarray:
    """Return computed values as stored numbers.

    Args:
        values: Float.
        there: Where they are values.
        dtype: Of the result; values beyond its limits become these, and those between integers the nearest, halves
            upwards (as in GDAL).
        nodata: A number that no value may become: it becomes the one beside it (as in GDAL).
        fill: What the result has elsewhere.
    """
    beside = None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        rounded = np.where(there, np.floor(values.astype("float64") + 0.5), 0)
        # The limits of 64 bits are no float64: what rounds to the number beyond is compared, not converted.
        low, high = rounded <= limits.min, rounded >= limits.max
        found = np.where(low | high, 0, rounded).astype(dtype)
        found[low], found[high] = limits.min, limits.max
        if nodata is not None:
            beside = int(nodata) + 1 if nodata == limits.min else int(nodata) - 1
    else:
        found = np.where(there, values, 0).astype(dtype)
        if nodata is not None and not np.isnan(nodata):
            beside = np.nextafter(dtype.type(nodata), dtype.type(-np.inf))
    if beside is not None:
        found[there & (found == nodata)] = beside
    found[~there] = fill
    return found
