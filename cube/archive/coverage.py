"""Where on a cube's grids its sources lie, what they leave uncovered, and which cannot be told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cube.errors import BuildError
from cube.grid import Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A source on its grid, at full resolution."""

    href: str
    is_plain: bool
    """Whether it is known by its name alone, and no catalogue says what it is."""
    grid: int
    row: int
    column: int
    height: int
    width: int
    gives: tuple[tuple[str, np.datetime64 | None], ...]
    """(band, time) pairs."""


class Coverage:
    """The places of a cube's sources."""

    def __init__(self, placed: Sequence[Placed], grids: Sequence[Levels]) -> None:
        """Note where each source lies.

        Args:
            placed: The sources.
            grids: The cube's.

        Raises:
            BuildError: Some have a time and others have none.
        """
        self._grids = grids
        self._boxes = np.array(  # left, top, right, bottom
            [(each.column, each.row, each.column + each.width, each.row + each.height) for each in placed], "float64"
        ).reshape(-1, 4)
        self._placed = placed
        self._places: Mapping[str, Mapping[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, each in enumerate(placed):
            for band, time in each.gives:
                self._places[band][time].append(i)
        times = {time for each in placed for _, time in each.gives}
        if None in times and len(times) > 1:
            is_dated = [each.gives[0][1] is not None for each in placed]
            raise BuildError(
                f"{sum(is_dated)} of {len(placed)} sources have a time and {placed[is_dated.index(False)].href} has "
                "none; build a cube of each"
            )
        self.times: list[Any] = sorted(times - {None})

    def holes(self, band: str) -> list[str]:
        """Return the dates (or places) at which no source of a band covers some pixel, in words.

        Raises:
            BuildError: Two plain files of a date cover the same pixels: nothing says which of them is meant.
        """
        found = []
        for time in self.times or [None]:
            here = self._places[band].get(time, [])
            self._refuse_twins(band, time, here)
            if not self._is_covered(here):
                found.append(str(time)[:19] if time is not None else "parts of the grid that no file covers")
        return found

    def _is_covered(self, here: Sequence[int]) -> bool:
        if len(self._grids) > 1:
            return False  # whatever grid a cube over several is opened on, none of them fills it
        whole, boxes = self._grids[0].full, self._boxes[list(here)]
        area = float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum())
        if area < whole.width * whole.height or len(here) < 2:
            return area >= whole.width * whole.height
        import shapely

        # A quarter of a pixel smaller on each side: neighbours that share an edge do not overlap.
        inner = shapely.box(boxes[:, 0] + 0.25, boxes[:, 1] + 0.25, boxes[:, 2] - 0.25, boxes[:, 3] - 0.25)
        if len(shapely.STRtree(inner).query(inner, predicate="intersects")[0]) > len(here):
            area = float(shapely.union_all(shapely.box(*boxes.T)).area)
        return area >= whole.width * whole.height

    def _refuse_twins(self, band: str, time: Any, here: Sequence[int]) -> None:
        known: dict[tuple[float, ...], str] = {}
        for i in here:
            each = self._placed[i]
            if not each.is_plain:
                continue
            twin = known.setdefault((each.grid, *self._boxes[i].tolist()), each.href)
            if twin != each.href:
                when = f" at {str(time)[:19]}" if time is not None else ""
                raise BuildError(
                    f"band {band!r}{when} comes from two files of the same place, {twin} and {each.href}; leave one "
                    "out, or tell bands and times apart with a pattern (pattern=, --pattern)"
                )
