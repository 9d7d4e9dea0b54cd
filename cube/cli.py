"""The command `cube`: thin shells over the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cube.errors import CubeError, MissingExtraError, SelectionError

app = typer.Typer(
    name="cube",
    help="Any archive of Cloud-Optimized GeoTIFFs is a Zarr cube.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A name in catalog.yaml, a manifest, or COGs.", metavar="NAME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
BandNames = Annotated[str | None, typer.Option("--bands", help="Only these, separated by commas.")]
Bbox = Annotated[str | None, typer.Option("--bbox", help="west,south,east,north in degrees.")]
Time = Annotated[str | None, typer.Option("--time", help="A date (2024, 2024-06, 2024-06-01) or FIRST/LAST.")]
Catalog = Annotated[Path, typer.Option("--catalog", help="The catalogue file to write to.")]


_EXTRA_OF = {
    "dask": "dask",
    "distributed": "dask",
    "fastapi": "server",
    "starlette": "server",
    "uvicorn": "server",
    "xpublish": "server",
}
"""Which extra brings a library that the base does without."""


def main() -> None:
    """Run the command; an error is one sentence on standard error and exit code 1."""
    try:
        app(standalone_mode=True)
    except CubeError as error:
        _fail(str(error))
    except ImportError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        _fail(str(MissingExtraError("this command", extra)))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _fail(message: str) -> NoReturn:
    # Not wrapped to the terminal's width: paths and URLs in it must stay whole.
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1)


@app.command(epilog="Example: cube build ~/rasters/*.tif --name mine")
def build(
    source: Annotated[list[str], typer.Argument(help="A folder, globs, files, URLs, or a STAC ItemCollection file.")],
    name: Annotated[str, typer.Option("--name", help="The cube's name in the catalogue.")],
    catalog: Catalog = Path("catalog.yaml"),
    bands: BandNames = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="How names are made: '{tile}_{band}_{time:%Y%m%d}.tif'.")
    ] = None,
    fill_value: Annotated[
        float | None, typer.Option("--fill-value", help="Marks holes of integer bands without a nodata value.")
    ] = None,
    description: Annotated[str, typer.Option("--description", help="What the cube is.")] = "",
    licence: Annotated[str, typer.Option("--license", help="SPDX name of the data's licence.")] = "",
    as_json: Json = False,
) -> None:
    """Read the headers of COGs and write the cube's manifest and its entry in the catalogue."""
    from cube.archive import build as build_manifest
    from cube.catalog import add_entry, manifest_entry
    from cube.info import describe

    attributes = {key: value for key, value in (("description", description), ("license", licence)) if value}
    folder = catalog.parent / f"{name}.cube"
    entry = manifest_entry(name, folder, catalog=catalog, description=description, license=licence or None)
    with _progress("reading headers") as report:
        manifest = build_manifest(
            source if len(source) > 1 else source[0],
            name=name,
            to=folder,
            bands=_names(bands),
            pattern=pattern,
            fill_value=fill_value,
            attributes=attributes,
            progress=report,
        )
    add_entry(catalog, entry)
    _print_facts(describe(manifest), as_json)


@app.command(epilog="Example: cube info mine --preview mine.png")
def info(
    name: Name,
    preview: Annotated[Path | None, typer.Option("--preview", help="Write a picture (PNG).")] = None,
    time: Time = None,
    as_json: Json = False,
) -> None:
    """Say what a cube holds; with --preview, draw it."""
    from cube.dataset import find_manifest
    from cube.info import describe, write_preview

    manifest = find_manifest(name)
    shown = write_preview(manifest, preview, time=_time(time)) if preview is not None else None
    _print_facts(describe(manifest), as_json)
    if shown is not None:
        sys.stderr.write(f"{preview}: {shown}\n")


@app.command(epilog="Example: cube compute mine ndvi --composite median --mask scl -o ndvi.tif")
def compute(
    name: Name,
    index: Annotated[str, typer.Argument(help="ndvi, ndwi or nbr.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .tif (COG) or a .zarr store.")],
    composite: Annotated[str | None, typer.Option("--composite", help="median, mean, max or min over time.")] = None,
    freq: Annotated[str | None, typer.Option("--freq", help="One composite a period: MS, QS, YS, 10D.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="scl, or BAND=VALUES with the values to keep.")] = None,
    bbox: Bbox = None,
    time: Time = None,
    level: Annotated[int, typer.Option("--level", help="0 is full resolution, 1 the first overview.")] = 0,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="local, or a scheduler's address (tcp://host:8786).")
    ] = None,
) -> None:
    """Compute an index of a cube, masked and composited, into a file."""
    from cube.dataset import find_manifest
    from cube.engine.cluster import connect, iterate_blocks
    from cube.views import open_view
    from cube.write import write_cog, write_zarr

    if output.suffix not in (".tif", ".tiff", ".zarr"):
        raise SelectionError(f"{output}: give a name that ends with .tif (a COG) or .zarr (a store)")
    array = open_view(
        find_manifest(name),
        index,
        mask=mask,
        composite=composite,
        freq=freq,
        bbox=_bbox(bbox),
        time=_time(time),
        level=level,
    )
    with connect(cluster) as client:
        if output.suffix == ".zarr":
            write_zarr(output, array.to_dataset())
        else:
            with _progress("computing blocks") as report:
                total = array.data.npartitions
                blocks = iterate_blocks(array.data, client)
                write_cog(output, array, blocks, progress=lambda done: report(done, total))
    size = ", ".join(f"{dim} {length}" for dim, length in array.sizes.items())
    sys.stdout.write(f"{output}: {array.attrs['long_name']}; {size}\n")


@app.command(epilog="Example: cube export mine --kerchunk mine.json")
def export(
    name: Name,
    kerchunk: Annotated[Path, typer.Option("--kerchunk", help="Write Kerchunk references: .json or .parq.")],
    level: Annotated[int, typer.Option("--level", help="0 is full resolution, 1 the first overview.")] = 0,
) -> None:
    """Write static references that others open without cogcube, where they can describe the cube."""
    from cube.dataset import find_manifest
    from cube.references import to_kerchunk

    to_kerchunk(find_manifest(name), kerchunk, level=level)
    # fsspec reads Parquet references with fastparquet alone.
    libraries = "xarray kerchunk imagecodecs-numcodecs" + ("" if kerchunk.suffix == ".json" else " fastparquet")
    sys.stdout.write(
        f'{kerchunk}: open it with `pip install {libraries}` and\n  xr.open_dataset("{kerchunk}", engine="kerchunk")\n'
    )


@app.command(epilog="Example: cube serve catalog.yaml --port 9000")
def serve(
    catalog: Annotated[Path, typer.Argument(help="The catalogue whose cubes are served.")] = Path("catalog.yaml"),
    host: Annotated[str, typer.Option("--host", help="127.0.0.1 serves this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes any free port.", min=0, max=65535)] = 9000,
) -> None:
    """Serve the cubes of a catalogue as Zarr over HTTP."""

    def announce(url: str) -> None:
        sys.stdout.write(_welcome(url, catalog))
        sys.stdout.flush()  # who started the server through a pipe waits for these lines

    _load_server()(catalog, host=host, port=port, ready=announce)


def _welcome(url: str, catalog: Path) -> str:
    from cube.catalog import read_catalog

    entries = read_catalog(catalog)
    names = [name for name, entry in entries.items() if entry.manifest_url(".") is not None]
    first = names[0] if names else "NAME"
    return (
        f"serving {len(names)} {'cube' if len(names) == 1 else 'cubes'} of {catalog} at {url} (Ctrl-C ends it)\n"
        f'  xr.open_dataset("{url}/datasets/{first}.zarr")\n'
        f'  intake.open_catalog("{url}/catalog.yaml")\n'
    )


def _load_server() -> Callable[..., None]:
    """Return the server's `serve`, found by entry point; a user's own `server.py` in its place is told apart."""
    import importlib.metadata
    import importlib.util

    import cube

    expected = Path(cube.__file__ or "").parent.parent / "server"
    spec = importlib.util.find_spec("server")  # finds a top-level module without running it
    if spec is None or spec.origin is None:
        raise CubeError("the package 'server' of cogcube is missing: install cogcube again")
    if not Path(spec.origin).parent.samefile(expected):
        raise CubeError(
            f"cube needs its own package 'server', but Python finds {spec.origin} first: rename that file, or run "
            "`cube` from another folder"
        )
    (entry,) = importlib.metadata.entry_points(group="cogcube.server", name="serve")
    loaded: Callable[..., None] = entry.load()
    return loaded


@app.command(epilog="Example: cube demo --keep")
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running.")] = False,
    folder: Annotated[Path, typer.Option("--folder", help="Where everything is written.")] = Path("demo"),
    size: Annotated[int, typer.Option("--size", help="Pixels an edge of a scene.", min=256, max=10240)] = 1536,
) -> None:
    """Do the whole job on an archive made on the spot, behind a store that answers after 50 ms."""
    import importlib.util

    if not all(map(importlib.util.find_spec, ("distributed", "intake_xarray", "kerchunk", "xpublish"))):
        raise MissingExtraError("cube demo", "dask,server,catalog,kerchunk")
    from cube.demo import run

    _load_server()
    run(folder, size=size, keep=keep)


@app.command(epilog="Example: cube doctor https://example.com/file.tif")
def doctor(
    url: Annotated[str | None, typer.Argument(help="An object whose first-byte time to measure.")] = None,
    as_json: Json = False,
) -> None:
    """Check Python, libraries, disk, ports, proxies and credentials (which are named, never shown)."""
    from cube import doctor as clinic

    findings = clinic.examine(url)
    if as_json:
        sys.stdout.write(json.dumps(clinic.as_json(findings), indent=2) + "\n")
    else:
        for what, finding, well in findings:
            sys.stdout.write(f"{'ok  ' if well else 'look'}  {what}: {finding}\n")
    if not all(well for _, _, well in findings):
        raise SystemExit(1)


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    from cube.info import describe_in_words

    if as_json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
        return
    lines = describe_in_words(facts)
    width = max(len(what) for what, _ in lines)
    sys.stdout.write("".join(f"{what:{width}}  {value}\n" for what, value in lines))


def _names(text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise SelectionError(f"--bands {text!r}: give names of bands, separated by commas")
    return names


def _bbox(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise SelectionError(f"--bbox {text!r}: give west,south,east,north in degrees") from None
    return west, south, east, north


def _time(text: str | None) -> str | tuple[str, str] | None:
    if text is None or "/" not in text:
        return text
    first, _, last = text.partition("/")
    return first, last


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, total) that draws a bar on a terminal's standard error, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
