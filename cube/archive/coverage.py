"""Where on a cube's grid its sources lie: what they leave uncovered, and what two of them cover both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cube.errors import BuildError
from cube.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A source on the cube's grid, at full resolution."""

    href: str
    row: int
    column: int
    height: int
    width: int
    gives: tuple[tuple[str, np.datetime64 | None], ...]
    """(band, time) pairs."""


class Coverage:
    """The places of a cube's sources."""

    def __init__(self, placed: Sequence[Placed], grid: Grid) -> None:
        """Note where each source lies.

        Args:
            placed: The sources.
            grid: The cube's, at full resolution.

        Raises:
            BuildError: Some have a time and others have none.
        """
        self._grid = grid
        self._boxes = np.array(  # left, top, right, bottom
            [(each.column, each.row, each.column + each.width, each.row + each.height) for each in placed], "float64"
        ).reshape(-1, 4)
        self._hrefs = [each.href for each in placed]
        self._places: Mapping[str, Mapping[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i, each in enumerate(placed):
            for band, time in each.gives:
                self._places[band][time].append(i)
        times = {time for each in placed for _, time in each.gives}
        if None in times and len(times) > 1:
            is_dated = [each.gives[0][1] is not None for each in placed]
            raise BuildError(
                f"{sum(is_dated)} of {len(placed)} sources have a time and {self._hrefs[is_dated.index(False)]} has "
                "none; build a cube of each"
            )
        self.times: list[Any] = sorted(times - {None})

    def holes(self, band: str) -> list[str]:
        """Return the dates (or places) at which no source of a band covers some pixel, in words.

        Raises:
            BuildError: Two sources of a date overlap; it names them.
        """
        found = []
        whole = self._grid.width * self._grid.height
        for time in self.times or [None]:
            here = self._places[band].get(time, [])
            self._refuse_overlaps(band, time, here)
            area = sum((self._boxes[i, 2] - self._boxes[i, 0]) * (self._boxes[i, 3] - self._boxes[i, 1]) for i in here)
            if area < whole:
                found.append(str(time)[:19] if time is not None else "parts of the grid that no file covers")
        return found

    def _refuse_overlaps(self, band: str, time: Any, here: Sequence[int]) -> None:
        if len(here) < 2:
            return
        import shapely

        mine = self._boxes[list(here)]
        # A quarter of a pixel smaller on each side: neighbours that share an edge do not overlap.
        shapes = shapely.box(mine[:, 0] + 0.25, mine[:, 1] + 0.25, mine[:, 2] - 0.25, mine[:, 3] - 0.25)
        one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
        clash = np.flatnonzero(one < other)
        if len(clash):
            first, second = (self._hrefs[here[int(side[clash[0]])]] for side in (one, other))
            when = f" at {str(time)[:19]}" if time is not None else ""
            raise BuildError(
                f"band {band!r}{when} comes from two overlapping sources, {first} and {second}; overlaps are not "
                "fused yet: leave one out, or tell bands and times apart with a pattern (pattern=, --pattern)"
            )
