"""The commands that keep pixels on this machine: copy, cache."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from cube.cli.options import BandNames, Bbox, Cube, Json, Time, parse_bbox, parse_names, parse_time, progress


def copy(
    name: Cube,
    to: Annotated[Path, typer.Option("--to", help="The folder that gets NAME.cube and its files.")],
    bbox: Bbox = None,
    time: Time = None,
    bands: BandNames = None,
    level: Annotated[
        int, typer.Option("--level", help="The finest level that is copied; it becomes full resolution.")
    ] = 0,
    as_name: Annotated[str | None, typer.Option("--name", help="The copy's name, if not the cube's.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a part of a cube to this machine, where it opens without a network; run again, it goes on."""
    from cube.archive.copy import copy_cube
    from cube.archive.copy_plan import plan_copy
    from cube.dataset import open_named

    plan = plan_copy(
        open_named(name),
        to,
        name=as_name,
        bands=parse_names(bands),
        bbox=parse_bbox(bbox),
        time=parse_time(time),
        level=level,
    )
    if not plan.is_done:
        sys.stderr.write(f"{plan}\n")
    with progress("copying bytes") as report:
        done = copy_cube(plan, progress=report)
    if as_json:
        sys.stdout.write(json.dumps(done.to_json() | {"plan": plan.to_json()}, indent=2) + "\n")
        return
    sys.stdout.write(f'{done}\n  open it with open_cube("{done.manifest.url}")\n')


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all of it.")] = False,
    as_json: Json = False,
) -> None:
    """Say what the cache of tiles on this machine holds, or empty it."""
    from cube.engine.cost import readable_bytes
    from cube.io.cache import FOLDER, TileCache
    from cube.settings import get_settings

    settings = get_settings()
    tiles = TileCache(settings.cache_dir / FOLDER, settings.cache_bytes)  # there may be tiles of when it was on
    found = tiles.clear() if clear else tiles.use()
    if as_json:
        sys.stdout.write(json.dumps(found.to_json() | {"cleared": clear}, indent=2) + "\n")
        return
    limit = f"at most {readable_bytes(found.max_bytes)}" if found.max_bytes else "off, CUBE_CACHE_BYTES is 0"
    what = f"{found.entries:,} tiles, {readable_bytes(found.bytes)}"
    sys.stdout.write(f"{found.folder}: {'deleted ' if clear else ''}{what} ({limit})\n")
