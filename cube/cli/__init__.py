"""The command `cube`: thin shells over the library."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from cube.cli import looks, measures, results, services, sources, storage, tuning
from cube.errors import CubeError, MissingExtraError

__all__ = ["app", "main"]

app = typer.Typer(
    name="cube",
    help="Any archive of Cloud-Optimized GeoTIFFs is a Zarr cube.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command, example in (
    (sources.build, "cube build ~/rasters/*.tif --name mine"),
    (sources.append, "cube append mine ~/rasters/new_20240601.tif"),
    (sources.refresh, "cube refresh mine --drop-vanished"),
    (sources.check, "cube check mine"),
    (looks.info, "cube info mine --preview mine.png"),
    (looks.explain, "cube explain mine --time 2024-05 --chunks auto"),
    (results.compute, "cube compute mine ndvi --composite median --mask scl -o ndvi.tif"),
    (results.export, "cube export mine --kerchunk mine.json"),
    (storage.copy, "cube copy mine --bbox 13.6,48.7,13.7,48.8 --to offline"),
    (storage.cache, "cube cache --clear"),
    (tuning.tune, "cube tune https://example.com/file.tif"),
    (measures.bench, "cube bench mine --peer odc-stac"),
    (sources.add, "cube add mine.json --name references"),
    (sources.place, "cube place mine --resolution 20 --groupby solar_day"),
    (services.serve, "cube serve catalog.yaml --port 9000"),
    (services.demo, "cube demo --keep"),
    (services.doctor, "cube doctor https://example.com/file.tif"),
):
    app.command(epilog=f"Example: {example}")(command)

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
