"""The archives that the workloads run on: synthetic COGs and their STAC Items, written once into `.benchmarks`."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from pyproj import Transformer

from cube.testing import write_cog

ROOT = Path(__file__).parent.parent / ".benchmarks"
CLEAR = (4, 5, 6, 7, 11)
"""Classes of the band "scl" that show the ground."""
_TRANSFORM = Affine(10.0, 0.0, 399960.0, 0.0, -10.0, 5400000.0)
_EPSG = 32633
_BORDER, _LATITUDE = 12.0, 48.0
"""Of zones 32 and 33."""
_VERSION = 1  # of what is written; a change makes all archives anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an archive is made of."""

    name: str
    dates: tuple[str, ...]
    """Days as YYYYMMDD, in order."""
    bands: tuple[str, ...]
    """uint16 with nodata 0; "scl" is a uint8 of classes."""
    size: int
    """Rows and columns of every file."""
    tile: int = 512
    overviews: str = "NONE"
    distinct: int | None = None
    """How many files are different: the others are further names of these. All where None."""
    zones: tuple[int, ...] = ()
    """UTM zones, west to east, on whose common border a scene of each lies at every date. One of zone 33 where none."""


def _days(first: str, count: int, step: int) -> tuple[str, ...]:
    days = np.datetime64(first) + np.arange(count) * step
    return tuple(str(day).replace("-", "") for day in days)


def recipe(name: str, *, full: bool) -> Recipe:
    """Return the recipe of an archive, small unless `full`."""
    six = _days("2024-01-01", 6, 1)
    quarter = tuple(f"2024{month:02}{day:02}" for month in (4, 5, 6) for day in (3, 10, 17, 24))
    recipes = (
        Recipe(name="cube", dates=six, bands=("nir", "red"), size=4096 if full else 1024, tile=512 if full else 256),
        Recipe(name="scenes", dates=quarter, bands=("nir", "red", "scl"), size=2048 if full else 768),
        Recipe(name="series", dates=_days("2020-01-01", 200 if full else 10, 7), bands=("red",), size=1024),
        Recipe(
            name="scan",
            dates=_days("2020-01-01", 500 if full else 20, 3),
            bands=("red",),
            size=1408,
            tile=128,
            overviews="AUTO",
            distinct=8 if full else 2,
        ),
        Recipe(
            name="zones",
            dates=six,
            bands=("red",),
            size=4096 if full else 1024,
            tile=512 if full else 256,
            overviews="AUTO",
            zones=(32, 33),
        ),
    )
    return next(each for each in recipes if each.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalArchive:
    """An archive on the disk."""

    folder: Path
    recipe: Recipe

    @property
    def dates(self) -> tuple[str, ...]:
        """Days as YYYYMMDD, in order."""
        return self.recipe.dates

    @property
    def bands(self) -> tuple[str, ...]:
        """Names, in order."""
        return self.recipe.bands

    @property
    def size(self) -> int:
        """Rows and columns of every file."""
        return self.recipe.size

    @property
    def served(self) -> Path:
        """The folder that an object store serves: the COGs, and copies of them in other formats."""
        return self.folder / "served"

    @property
    def answers(self) -> Path:
        """Where the answers of workloads are kept."""
        return self.folder / "answers"

    @property
    def fingerprint(self) -> str:
        """Changes with the content."""
        return _fingerprint(self.recipe)

    @property
    def file_bytes(self) -> int:
        """Bytes of all COGs."""
        return sum(
            self.path(band, date, zone).stat().st_size
            for date in self.dates
            for band in self.bands
            for zone in self.recipe.zones or (None,)
        )

    def path(self, band: str, date: str, zone: int | None = None) -> Path:
        """Return the COG of a band at a date, in a UTM zone where there are several."""
        return self.served / _file_name(band, date, zone)

    def items(self, url: str) -> list[dict[str, Any]]:
        """Return the STAC Items of the archive, as served at a URL."""
        return [_item(self.recipe, date, zone, url) for date in self.dates for zone in self.recipe.zones or (None,)]


def write_archive(name: str, *, full: bool, root: Path = ROOT) -> LocalArchive:
    """Return an archive, which is written where it is not there yet."""
    made = recipe(name, full=full)
    folder = root / "archives" / f"{name}-{'full' if full else 'small'}-{_fingerprint(made)}"
    archive = LocalArchive(folder=folder, recipe=made)
    if not archive.served.exists():
        writing = LocalArchive(folder=folder.with_suffix(f".{os.getpid()}"), recipe=made)
        _write(writing)
        try:
            writing.folder.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(writing.folder)
    return archive


def _file_name(band: str, date: str, zone: int | None) -> str:
    return f"{band}_{date}.tif" if zone is None else f"{band}_{date}_{zone}.tif"


def transform_of(made: Recipe, zone: int | None) -> tuple[int, Affine]:
    """Return the CRS (an EPSG code) of a recipe's files, and their affine."""
    if zone is None:
        return _EPSG, _TRANSFORM
    # Two thirds of a scene lie on its own side of the border, a third beyond: neighbours overlap, as swaths do.
    epsg, side = 32600 + zone, made.size * 10
    east, north = Transformer.from_crs(4326, epsg, always_xy=True).transform(_BORDER, _LATITUDE)
    west = east - side * (2 if zone == made.zones[0] else 1) / 3
    # On whole pixels of 10 m, and not on the tiles of its neighbour.
    return epsg, Affine(10.0, 0.0, round(west / 10) * 10.0, 0.0, -10.0, round((north + side / 2) / 10) * 10.0)


def _fingerprint(made: Recipe) -> str:
    return hashlib.sha256(f"{_VERSION} {made!r}".encode()).hexdigest()[:8]


def _write(archive: LocalArchive) -> None:
    made = archive.recipe
    rng, size = np.random.default_rng(0), made.size
    # Smooth land and a little noise: tiles of a real scene's size, about two thirds of their pixels' bytes.
    land = (rng.normal(0, 30, (size, size)).cumsum(0).cumsum(1) / 200).astype("i4") % 3000
    diagonal = np.add.outer(np.arange(size), np.arange(size))
    written: list[Path] = []
    for number, date in enumerate(archive.dates):
        # The edge of a swath: a corner without data, larger or smaller from date to date.
        bare = diagonal < size // 16 * (1 + number % 3)
        for band, zone in itertools.product(archive.bands, made.zones or (None,)):
            path = archive.path(band, date, zone)
            if made.distinct is not None and len(written) >= made.distinct:
                path.hardlink_to(written[number % made.distinct])
                continue
            if band == "scl":
                pixels = _classes(rng, size)
            else:
                gain = 3 if band == "nir" else 2
                pixels = (land * gain // 3 + 1000 + number % 50 * 37 + rng.integers(0, 60, (size, size))).astype("u2")
            pixels[bare] = 0
            epsg, transform = transform_of(made, zone)
            place = {"crs": f"EPSG:{epsg}", "transform": transform}
            write_cog(path, pixels, nodata=0, blocksize=made.tile, overviews=made.overviews, **place)
            written.append(path)


def _classes(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return scene classes in patches as large as clouds."""
    patch = 48
    coarse = rng.choice([*CLEAR, 3, 8, 9, 10], (-(-size // patch), -(-size // patch)))
    return np.kron(coarse, np.ones((patch, patch), "u1"))[:size, :size].astype("u1")


def _item(made: Recipe, date: str, zone: int | None, url: str) -> dict[str, Any]:
    """Return the STAC Item of one date, and of one zone where there are several."""
    day, size = f"{date[:4]}-{date[4:6]}-{date[6:]}", made.size
    epsg, transform = transform_of(made, zone)
    corners = [transform @ corner for corner in ((0, 0), (0, size), (size, size), (size, 0), (0, 0))]
    to_degrees = Transformer.from_crs(epsg, 4326, always_xy=True).transform
    ring = [[float(value) for value in to_degrees(*corner)] for corner in corners]
    longitudes, latitudes = zip(*ring, strict=True)
    versions = ("projection/v1.2.0", "raster/v1.1.0", "eo/v1.1.0")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"https://stac-extensions.github.io/{name}/schema.json" for name in versions],
        "id": f"{made.name}_{date}" if zone is None else f"{made.name}_{date}_{zone}",
        "collection": made.name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": f"{day}T10:00:00Z",
            "proj:epsg": epsg,
            "proj:code": f"EPSG:{epsg}",
            "proj:shape": [size, size],
            "proj:transform": list(transform)[:6],
        },
        "links": [],
        "assets": {band: _asset(band, f"{url}/{_file_name(band, date, zone)}") for band in made.bands},
    }


def _asset(band: str, href: str) -> dict[str, Any]:
    dtype = "uint8" if band == "scl" else "uint16"
    asset: dict[str, Any] = {
        "href": href,
        "type": "image/tiff; application=geotiff; profile=cloud-optimized",
        "roles": ["data"],
        "raster:bands": [{"data_type": dtype, "nodata": 0, "spatial_resolution": 10}],
    }
    if band != "scl":
        asset["eo:bands"] = [{"name": band, "common_name": band}]
    return asset


def to_json(items: list[dict[str, Any]], path: Path) -> Path:
    """Write Items as an ItemCollection and return its path."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}), encoding="utf-8")
    return path
