"""The smallest image of a source, read by its header alone: pixels as a check on what a catalogue says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from cube.errors import ReadError, SourceError
from cube.grid import Window
from cube.io import loop
from cube.io.ranges import read_range
from cube.io.stores import sign
from cube.plan import Target, plan_image
from cube.scan import ScannedSource
from cube.tiff.decode import DecodeError, decode_tile

_MOST_TILES = 16
"""Of the smallest image: a file without overviews is judged by this many of its tiles, from the middle outwards."""


def read_smallest(
    wanted: Sequence[tuple[ScannedSource, int]], *, patch_url: Callable[[str], str] | None = None
) -> list[np.ndarray | SourceError]:
    """Return pixels of one sample of each source, from its smallest overview.

    Returns:
        Stored numbers (pixels,) a source, of at most 16 tiles; padding and tiles that the file leaves out are not
        among them. An error where they could not be read, or only by GDAL.
    """
    return loop.run(_read_all(wanted, patch_url))


async def _read_all(
    wanted: Sequence[tuple[ScannedSource, int]], patch_url: Callable[[str], str] | None
) -> list[np.ndarray | SourceError]:
    return await asyncio.gather(*[_read(scanned, sample, patch_url) for scanned, sample in wanted])


async def _read(
    scanned: ScannedSource, sample: int, patch_url: Callable[[str], str] | None
) -> np.ndarray | SourceError:
    header, href = scanned.header, scanned.source.href
    if header.needs_gdal is not None:
        return ReadError(href, f"is not looked into: {header.needs_gdal}")
    image = header.levels[-1]
    whole = Window(top=0, bottom=image.height, left=0, right=image.width)
    pieces = [each for each in plan_image(header, image, whole, (Target("", 0, sample),)) if each.length]
    middle = len(pieces) // 2
    pieces = pieces[max(0, middle - _MOST_TILES // 2) : middle + _MOST_TILES // 2]
    try:
        signed = sign(href, patch_url)
        buffers = await asyncio.gather(
            *[read_range(href, each.offset, each.offset + each.length, signed=signed) for each in pieces]
        )
        tiles = await asyncio.to_thread(
            lambda: [
                decode_tile(data, each.layout)[: each.height, : each.width, each.targets[0].sample].ravel().copy()
                for each, data in zip(pieces, buffers, strict=True)
            ]
        )
    except SourceError as error:
        return error
    except DecodeError as error:
        return ReadError(href, f"its smallest image is damaged: {error}")
    return np.concatenate(tiles) if tiles else np.empty(0, header.dtype)
