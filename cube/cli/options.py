"""What several commands share: their options, how texts become values, progress and what is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cube.errors import SelectionError

Name = Annotated[str, typer.Argument(help="A name in catalog.yaml, a manifest, or COGs.", metavar="NAME")]
Cube = Annotated[str, typer.Argument(help="A name in catalog.yaml, or a manifest.", metavar="NAME")]
Sources = Annotated[list[str], typer.Argument(help="A folder, globs, files, URLs, or a file of STAC.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
BandNames = Annotated[str | None, typer.Option("--bands", help="Only these, separated by commas.")]
Bbox = Annotated[str | None, typer.Option("--bbox", help="west,south,east,north in degrees.")]
Time = Annotated[str | None, typer.Option("--time", help="A date (2024, 2024-06, 2024-06-01) or FIRST/LAST.")]
Level = Annotated[int, typer.Option("--level", help="0 is full resolution, 1 the first overview.")]
Catalog = Annotated[Path, typer.Option("--catalog", help="The catalogue file to write to.")]


def print_facts(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what a cube is."""
    from cube.info import describe_in_words

    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    lines = describe_in_words(facts)
    width = max(len(what) for what, _ in lines)
    sys.stdout.write("".join(f"{what:{width}}  {value}\n" for what, value in lines))


def parse_names(text: str | None) -> list[str] | None:
    """Return names that are separated by commas."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise SelectionError(f"--bands {text!r}: give names of bands, separated by commas")
    return names


def parse_bbox(text: str | None) -> tuple[float, float, float, float] | None:
    """Return (west, south, east, north)."""
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise SelectionError(f"--bbox {text!r}: give west,south,east,north in degrees") from None
    return west, south, east, north


def parse_time(text: str | None) -> str | tuple[str, str] | None:
    """Return a date, or the first and the last."""
    if text is None or "/" not in text:
        return text
    first, _, last = text.partition("/")
    return first, last


def parse_chunks(text: str | None) -> str | dict[str, int] | None:
    """Return "auto", or lengths by dimension of "time=1,y=512,x=512"."""
    if text is None or text == "auto":
        return text
    try:
        pairs = [part.partition("=") for part in text.split(",")]
        return {dim.strip(): int(length) for dim, _, length in pairs}
    except ValueError:
        raise SelectionError(f"--chunks {text!r}: give auto, or lengths as time=1,y=512,x=512") from None


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that draws a bar on a terminal's standard error, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
