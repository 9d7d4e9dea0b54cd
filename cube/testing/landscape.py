"""What a synthetic satellite sees: fields in their season, woods, a river, a town; clouds, shadows, an orbit's edge."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

BANDS = ("blue", "green", "red", "nir", "scl")
SCALE, OFFSET = 0.0001, -0.1
"""Reflectance = stored number * SCALE + OFFSET, as in Sentinel-2 since processing baseline 04.00."""


class _Kind(NamedTuple):
    """A land cover: its share of the fields, its season (days of the year) and its colours (blue, green, red, nir)."""

    share: float
    up: float
    up_days: float
    down: float
    down_days: float
    least: float  # of the ground that is green, outside the season
    most: float
    leaf: tuple[float, float, float, float]
    ground: tuple[float, float, float, float]
    rough: float


_CROP, _GRASS, _WOOD = (0.028, 0.066, 0.033, 0.47), (0.035, 0.075, 0.045, 0.42), (0.018, 0.034, 0.019, 0.30)
_SOIL, _LITTER, _ROOF = (0.062, 0.088, 0.122, 0.21), (0.030, 0.046, 0.052, 0.16), (0.125, 0.135, 0.155, 0.20)
_KINDS = {
    "wheat": _Kind(0.30, 88, 13, 184, 6, 0.15, 0.95, _CROP, _SOIL, 0.05),
    "rape": _Kind(0.13, 78, 12, 179, 6, 0.15, 0.95, _CROP, _SOIL, 0.05),
    "maize": _Kind(0.22, 162, 8, 262, 9, 0.03, 0.95, _CROP, _SOIL, 0.05),
    "beet": _Kind(0.12, 150, 9, 290, 14, 0.03, 0.90, _CROP, _SOIL, 0.05),
    "meadow": _Kind(0.18, 82, 14, 310, 25, 0.35, 0.85, _GRASS, _SOIL, 0.06),
    "fallow": _Kind(0.05, 120, 20, 250, 20, 0.10, 0.35, _GRASS, _SOIL, 0.08),
    "wood": _Kind(0, 112, 6, 290, 12, 0.35, 0.95, _WOOD, _LITTER, 0.16),
    "roof": _Kind(0, 100, 20, 290, 20, 0.05, 0.20, _GRASS, _ROOF, 0.22),
    "garden": _Kind(0, 95, 15, 290, 20, 0.35, 0.75, _GRASS, _ROOF, 0.20),
    "road": _Kind(0, 95, 15, 290, 20, 0.10, 0.30, _GRASS, _ROOF, 0.06),
    "water": _Kind(0, 0, 1, 1, 1, 0, 0, _GRASS, (0.045, 0.060, 0.043, 0.024), 0.03),
}
_KIND = {name: index for index, name in enumerate(_KINDS)}
BARE_CORNER = 0.08
"""Part of the upper and left edge that the orbit never reaches: no scene has data there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Landscape:
    """What stays the same from date to date."""

    cover: NDArray[np.int32]
    """(y, x): which row of the tables below."""
    texture: Floats
    """(y, x): relative variation of reflectance inside a cover, mean 0."""
    kind: NDArray[np.int64]
    """Of each cover, an index into `_KINDS`."""
    shift_days: NDArray[np.float64]
    """Of each cover, how late it is."""
    brightness: NDArray[np.float64]
    """Of each cover's ground, around 1."""


def strips(size: int) -> list[slice]:
    """Return the rows of a picture in pieces that fit a processor's cache: three times as fast as whole arrays."""
    return [slice(start, min(size, start + 32)) for start in range(0, size, 32)]


def _noise(rng: np.random.Generator, size: int, cell: float, octaves: int = 1) -> Floats:
    """Return (size, size) smooth noise, mean 0 and variance 1: cubic B-splines on random knots `cell` pixels apart."""
    gains = [0.55**octave for octave in range(octaves)]
    total = np.zeros((size, size), np.float32)
    for octave, gain in enumerate(gains):
        step = max(1.0, cell / 2**octave)
        place = np.arange(size, dtype=np.float32) / np.float32(step)
        left = place.astype(np.intp)
        t = (place - left)[:, None]
        curve = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (3 * t * (1 + t - t**2) + 1) / 6, t**3 / 6]
        knots = rng.standard_normal((left[-1] + 4,) * 2, np.float32) * np.float32(2.09 * gain / math.hypot(*gains))
        halfway = np.zeros((size, len(knots)), np.float32)
        for before, after in ((knots, halfway), (halfway, total)):  # along one axis, then along the other
            lines = before if before is knots else np.ascontiguousarray(before.T)
            for rows in strips(size):
                for k, weight in enumerate(curve):
                    after[rows] += weight[rows] * lines[left[rows] + k]
    return total


def _parcels(rng: np.random.Generator, side: int) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Return (side, side) maps of blocks and of their parcels, and how many parcels: rectangles split at random."""
    blocks, parcels = np.empty((side, side), np.int32), np.empty((side, side), np.int32)
    todo, count = [(0, 0, side, side, -1)], 0
    while todo:
        y, x, h, w, block = todo.pop()
        if block < 0 and max(h, w) <= 110:
            block = count
        if h * w <= 260 * rng.lognormal(0, 0.7) or min(h, w) < 5:
            blocks[y : y + h, x : x + w], parcels[y : y + h, x : x + w] = block, count
            count += 1
            continue
        cut = rng.uniform(0.3, 0.7)
        if (h > w) == (rng.random() < 0.8):
            todo += [(y, x, int(h * cut), w, block), (y + int(h * cut), x, h - int(h * cut), w, block)]
        else:
            todo += [(y, x, h, int(w * cut), block), (y, x + int(w * cut), h, w - int(w * cut), block)]
    return blocks, parcels, count


@functools.lru_cache(maxsize=1)
def make_landscape(size: int, seed: int) -> Landscape:
    """Return fields in blocks with lanes between, woods on the hills, a river, a town on it, and villages.

    The last one made is kept; make it before threads ask for it, or each makes its own.
    """
    rng = np.random.default_rng([seed, 0])
    rows, columns = np.arange(size, dtype=np.float32)[:, None], np.arange(size, dtype=np.float32)[None, :]
    blocks, parcels, count = _parcels(rng, size)
    bend = [np.float32(0.012 * size) * _noise(rng, size, size / 6, 2) for _ in range(2)]
    down = (rows * math.cos(0.35) - columns * math.sin(0.35) + bend[0]).astype(np.int32) % size
    across = (rows * math.sin(0.35) + columns * math.cos(0.35) + bend[1]).astype(np.int32) % size
    block, cover = blocks[down, across], parcels[down, across]
    shares = np.array([kind.share for kind in _KINDS.values()])
    field_kind = rng.choice(len(_KINDS), count, p=shares / shares.sum())
    extra = {"wood": 48, "roof": 96, "garden": 32, "road": 1, "water": 1}
    kind = np.concatenate([field_kind, np.repeat([_KIND[name] for name in extra], list(extra.values()))])
    first = {name: int(np.argmax(kind == _KIND[name])) for name in extra}

    hills, ragged = _noise(rng, size, size / 9, 6), _noise(rng, size, max(4, size / 40), 3)
    bed = size * (0.47 + 0.10 * np.sin(5.2 * columns / size + 0.6) + 0.035 * np.sin(14 * columns / size + 2))
    from_river = np.abs(rows - bed) / np.hypot(1, np.gradient(bed[0])) / max(1.5, 0.0055 * size)
    town = np.full((size, size), -9, np.float32)
    for row, column, radius in [
        (0.41, 0.63, 0.085),
        *rng.uniform((0.03, 0.03, 0.012), (0.97, 0.97, 0.024), (14, 3)).tolist(),
    ]:
        far = ((rows - row * size) ** 2 + (columns - column * size) ** 2) / (radius * size) ** 2
        np.maximum(town, 1 - far, out=town)
    town += np.float32(0.25) * ragged
    house = down // 4 * 7919 + across // 5 * 104729
    lanes = (block != np.roll(block, 1, 0)) | (block != np.roll(block, 1, 1))
    streets = (town > 0) & ((down % 16 == 0) | (across % 20 == 0))
    layers = (
        (lanes, "road", 0),
        ((hills > 0.8) | ((from_river < 5) & (ragged > 0.35)), "wood", cover.copy()),
        (town > 0, "garden", house),
        (town + np.float32(0.3) * _noise(rng, size, 3) > 0.3, "roof", house),
        (streets, "road", 0),
        (from_river < 1, "water", 0),
    )
    for where, name, which in layers:
        np.copyto(cover, first[name] + which % extra[name], where=where, casting="same_kind")
    rough = np.array([kind.rough for kind in _KINDS.values()], np.float32)[kind]
    grain = 0.75 * rng.standard_normal((size, size), np.float32) + 0.65 * _noise(rng, size, max(2, size / 100), 4)
    return Landscape(
        cover=cover,
        texture=grain * rough[cover],
        kind=kind,
        shift_days=rng.normal(0, 5, kind.size),
        brightness=rng.lognormal(0, 0.16, kind.size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sky:
    """The clouds of one day."""

    cloud: Floats
    """(y, x): opacity, 0 to 1."""
    shadow: Floats
    """(y, x): the same, where it falls."""


def _sky(size: int, rng: np.random.Generator) -> _Sky:
    amount = rng.uniform(0.03, 0.45)
    field = _noise(rng, size, size / 9, 6)
    cloud = np.clip((field - np.quantile(field[::4, ::4], 1 - amount).astype(np.float32)) * np.float32(1.2), 0, 1)
    down, across = max(1, int(0.03 * size)), max(1, int(0.017 * size))
    shadow = np.zeros_like(cloud)
    shadow[:-down, :-across] = cloud[down:, across:]  # the sun stands in the south-east
    return _Sky(cloud=cloud, shadow=shadow)


def _colours(land: Landscape, day_of_year: int) -> tuple[Floats, Floats]:
    """Return how green each cover is (0 to 1), and its reflectance (cover, band) in blue, green, red and nir."""
    columns = zip(*(_KINDS[name] for name in _KINDS), strict=True)
    _, up, up_days, down, down_days, least, most, leaf, ground, _ = (np.array(column)[land.kind] for column in columns)
    late = day_of_year - land.shift_days
    season = 1 / ((1 + np.exp((up - late) / up_days)) * (1 + np.exp((late - down) / down_days)))
    green = least + (most - least) * season
    flowers = np.exp(-(((late - 127) / 9) ** 2)) * (land.kind == _KIND["rape"])
    colour = leaf * green[:, None] + ground * (land.brightness * (1 - green))[:, None]
    colour += flowers[:, None] * np.array([0.004, 0.075, 0.068, 0.03])
    return green.astype(np.float32), colour.astype(np.float32)


def swath_edge(size: int, seed: int, day: np.datetime64) -> tuple[float, float, int]:
    """Return the swath's edge on one day: its column at the top and at the bottom, and the side that has data.

    The side is 1 for right and -1 for left; an edge outside the picture leaves data everywhere.
    """
    rng = np.random.default_rng([seed, 1, int(day.astype(np.int64))])
    side, inside, wide = int(rng.choice([-1, 1])), rng.random() < 0.6, rng.uniform(0.08, 0.35) * size
    top = (wide if inside else -size) if side > 0 else (size - wide if inside else 2.0 * size)
    return top, top - 0.12 * size, side


def make_scene(size: int, seed: int, day: np.datetime64, bands: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return (size, size) stored numbers of `bands` on one day: uint16 DN, for scl uint8 classes; 0 is nodata.

    The landscape is one for a size and a seed; it is kept for the next call.
    """
    land, number = make_landscape(size, seed), int(day.astype(np.int64))
    sky = _sky(size, np.random.default_rng([seed, 2, number]))
    top, bottom, side = swath_edge(size, seed, day)
    centres = np.arange(size) + 0.5
    valid = (centres[None, :] - (top + (bottom - top) * centres[:, None] / size)) * side > 0
    valid &= centres[None, :] + centres[:, None] > BARE_CORNER * size
    green, colour = _colours(land, number - int(day.astype("M8[Y]").astype("M8[D]").astype(np.int64)) + 1)
    made: dict[str, NDArray[Any]] = {}
    for index, band in enumerate(BANDS):
        if band == "scl" and band in bands:
            made[band] = _classify(land, sky, green) * valid
        elif band in bands:
            rng = np.random.default_rng([seed, 3 + index, number])
            made[band] = _measure(land, sky, colour[:, index].copy(), rng) * valid
    return made


def _measure(land: Landscape, sky: _Sky, colour: Floats, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return (y, x) DN of one band, at least 1100: a reflectance of 0.01, so that NDVI never divides by nearly zero."""
    dn = np.empty(land.cover.shape, np.uint16)
    for rows in strips(len(dn)):
        cloud = sky.cloud[rows]
        field = colour[land.cover[rows]] * (1 + land.texture[rows])
        field *= 1 - np.float32(0.55) * sky.shadow[rows]
        field += cloud * (np.float32(0.30) + np.float32(0.45) * cloud - field)
        noise = rng.standard_normal(field.shape, np.float32)
        field += noise * (np.float32(0.0015) + np.float32(0.011) * field)
        dn[rows] = np.clip(np.rint((field - np.float32(OFFSET)) / np.float32(SCALE)), 1100, 65535)
    return dn


def _classify(land: Landscape, sky: _Sky, green: Floats) -> NDArray[np.uint8]:
    """Return (y, x) SCL classes, equal in squares of two, as Sen2Cor classifies at 20 m."""
    size = len(land.cover)
    classes = np.where(green > 0.3, 4, 5).astype(np.uint8)
    classes[land.kind == _KIND["water"]] = 6
    cloud = sky.cloud[::2, ::2]
    scl = classes[land.cover[::2, ::2]]
    scl[(sky.shadow[::2, ::2] > 0.25) & (cloud < 0.1)] = 3
    for opacity, value in ((0.03, 7), (0.1, 10), (0.3, 8), (0.65, 9)):
        scl[cloud > opacity] = value
    return scl.repeat(2, 0).repeat(2, 1)[:size, :size]
