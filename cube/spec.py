"""The values that describe a cube: its bands, and the `CubeSpec` that a task carries."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from cube.grid import Grid

type Groupby = Literal["time", "solar_day", "id"]
type Fuse = Literal["first", "last", "newest", "least_cloudy", "mean", "median"]
type Resampling = Literal["nearest", "bilinear", "cubic", "average"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One variable of a cube: how its numbers are stored and what they mean."""

    name: str
    dtype: str
    """Of the stored numbers, as numpy's name ("uint16")."""
    nodata: float | None = None
    """The stored number that means "no data"; NaN possible; None where every number is a value."""
    hole: float = 0
    """What a pixel holds where no source covers it; equal to `nodata` where there is one."""
    scale: float = 1.0
    offset: float = 0.0
    """Physical value = stored number * scale + offset."""
    units: str | None = None
    description: str | None = None
    aliases: tuple[str, ...] = ()
    classes: tuple[tuple[int, str], ...] = ()
    """(value, meaning) of a categorical band."""
    colormap: tuple[tuple[int, int, int, int, int], ...] = ()
    """(value, red, green, blue, alpha), 0-255, of a palette."""

    def to_json(self) -> dict[str, Any]:
        """Return the band as JSON values; NaN and infinities as strings, since JSON has none."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Band:
        """Return the band that `to_json` wrote."""
        known = {each.name for each in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}  # schema 1 had one more
        for key in ("nodata", "hole"):
            if isinstance(values.get(key), str):
                values[key] = float(values[key])
        values["aliases"] = tuple(values.get("aliases", ()))
        values["classes"] = tuple((int(value), str(meaning)) for value, meaning in values.get("classes", ()))
        values["colormap"] = tuple(tuple(int(part) for part in entry) for entry in values.get("colormap", ()))
        return cls(**values)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """What pixels and dates a cube has, of sources that may lie on many grids and overlap."""

    grid: Grid | None = None
    """None is a grid of the sources, `lattice`."""
    lattice: int | None = 0
    """Position of that grid among the manifest's; sources on others are not read. None: nothing is chosen yet."""
    groupby: Groupby = "time"
    """What is one step of the time axis: one time, one day by the sun at `longitude`, or one item."""
    longitude: float = 0.0
    """Degrees east."""
    fuse: Fuse = "first"
    """What becomes of pixels that several sources of a step give."""
    resampling: tuple[tuple[str, Resampling], ...] = ()
    """How sources on other grids are resampled, by name of the band; nearest where none is named."""

    def resampling_of(self, band: str) -> Resampling:
        """Return how a band is resampled."""
        return dict(self.resampling).get(band, "nearest")

    def to_json(self) -> dict[str, Any]:
        """Return the placing as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        grid = None if self.grid is None else self.grid.to_json()
        return values | {"grid": grid, "resampling": dict(self.resampling)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Placing:
        """Return the placing that `to_json` wrote.

        Raises:
            ValueError: It names a way that this release does not know.
        """
        ways = [
            (Groupby, data["groupby"]),
            (Fuse, data["fuse"]),
            *((Resampling, how) for how in data["resampling"].values()),
        ]
        for known, way in ways:
            if way not in get_args(known.__value__):
                raise ValueError(f"it is placed by {way!r}, which this release does not know")
        grid = None if data["grid"] is None else Grid.from_json(data["grid"])
        return cls(**{**data, "grid": grid, "resampling": tuple(data["resampling"].items())})

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what dask's tokens of this value are made of."""
        grid = None if self.grid is None else tuple(self.grid.to_json().items())
        return ("cube.Placing", grid, self.lattice, self.groupby, self.longitude, self.fuse, self.resampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class CubeSpec:
    """All that a task, a store or a token holds of a cube; small, picklable, hashable."""

    manifest: str
    """URL or absolute path of the manifest folder."""
    version: str
    level: int = 0
    """0 is full resolution."""
    errors: Literal["raise", "skip"] = "raise"
    """What becomes of a source that cannot be read: an error, or pixels without data, which the reader reports."""
    on: Placing | None = None
    """None is as the manifest says."""
    patch_url: Callable[[str], str] | None = field(default=None, repr=False)
    """Applied to each source's href when it is fetched, to sign it; its result is never stored."""

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """Return what dask's tokens of this cube are made of; signing does not change what is read."""
        on = None if self.on is None else self.on.__dask_tokenize__()
        return ("cube.CubeSpec", self.manifest, self.version, self.level, self.errors, on)
