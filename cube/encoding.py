"""How sources store a band, and the one encoding that the cube gives it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cube.errors import BuildError
from cube.scan import ScannedSource
from cube.source import BandInfo
from cube.spec import Band


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One band of one source: a sample of a scanned file, with what its catalogue says of it."""

    scanned: ScannedSource
    index: int
    """Position among the file's samples."""
    info: BandInfo

    @property
    def facts(self) -> dict[str, object]:
        """What must agree among the sources of one band: the file's word first, the catalogue's where it is silent."""
        header = self.scanned.header
        scale, offset = header.scales[self.index], header.offsets[self.index]
        if (scale, offset) == (1.0, 0.0):
            scale = 1.0 if self.info.scale is None else self.info.scale
            offset = 0.0 if self.info.offset is None else self.info.offset
        nodata = header.nodata if header.nodata is not None else _as_stored(self.info.nodata, header.dtype)
        return {"dtype": header.dtype.name, "nodata": nodata, "scale": scale, "offset": offset}


def choose_encoding(name: str, samples: Sequence[Sample], *, fill_value: float | None, holes: Sequence[str]) -> Band:
    """Return the one encoding of a band.

    Args:
        name: The band.
        samples: Its sample in every source.
        fill_value: What marks pixels that no source covers, given by the user.
        holes: Dates (or places) at which no source covers some pixel, as text for the error.

    Raises:
        BuildError: The sources differ in dtype, nodata, scale or offset, or an integer band has holes and no number to
            mark them with.
    """
    facts = samples[0].facts
    for other in samples[1:]:
        for key, value in other.facts.items():
            if not _same(value, facts[key]):
                raise BuildError(
                    f"band {name!r} is stored differently in {samples[0].scanned.source.href} and "
                    f"{other.scanned.source.href}: {key} is {facts[key]} and {value}; build a cube of each kind"
                )
    dtype, nodata = np.dtype(str(facts["dtype"])), facts["nodata"]
    if nodata is None and fill_value is not None:
        nodata = _as_stored(fill_value, dtype)
        if nodata is None:
            raise BuildError(f"fill value {fill_value} does not fit band {name!r} of {dtype}; choose one that does")
    if nodata is None and holes and dtype.kind != "f":
        raise BuildError(
            f"band {name!r} ({dtype}, no nodata value) is missing at {len(holes)} places or dates: {_some(holes)}; "
            "give a fill value that is not a measurement (fill_value=, --fill-value), or leave the band out"
        )
    info, header = samples[0].info, samples[0].scanned.header
    return Band(
        name=name,
        dtype=dtype.name,
        nodata=nodata,  # type: ignore[arg-type]  # facts holds numbers only
        hole=nodata if nodata is not None else (math.nan if dtype.kind == "f" else 0),  # type: ignore[arg-type]
        sparse=_sparse(name, samples),
        scale=float(facts["scale"]),  # type: ignore[arg-type]
        offset=float(facts["offset"]),  # type: ignore[arg-type]
        units=header.units[samples[0].index] or info.units,
        description=info.description or header.descriptions[samples[0].index],
        aliases=tuple(sorted({alias for sample in samples for alias in sample.info.aliases} - {name})),
        classes=info.classes,
    )


def _sparse(name: str, samples: Sequence[Sample]) -> float:
    """Return what tiles hold that files leave out: a file's own nodata, whatever its catalogue or the user says."""
    found: dict[str, tuple[float, str]] = {}
    for sample in samples:
        header = sample.scanned.header
        if any((level.lengths == 0).any() for level in header.levels):
            value = 0 if header.nodata is None else header.nodata
            found.setdefault(repr(value), (value, sample.scanned.source.href))
    if len(found) > 1:
        (one, first), (other, second), *_ = found.values()
        raise BuildError(
            f"tiles that files of band {name!r} leave out mean {one} in {first} and {other} in {second}; "
            "build a cube of each kind"
        )
    return next(iter(found.values()), (0, ""))[0]


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return one == other


def _as_stored(value: float | None, dtype: np.dtype) -> float | int | None:
    """Return a number as the dtype stores it; None where the dtype cannot hold it."""
    if value is None:
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(value))
        return rounded if math.isinf(value) or not math.isinf(rounded) else None
    if not math.isfinite(value) or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return int(value) if limits.min <= value <= limits.max else None


def _some(texts: Sequence[str], most: int = 5) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more
