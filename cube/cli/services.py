"""The commands around the library: serve, demo, doctor."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cube.cli.options import Json
from cube.errors import CubeError, MissingExtraError


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
    from cube.errors import CatalogError

    entries, names = read_catalog(catalog), []
    for name in entries:
        with contextlib.suppress(CatalogError):  # of one entry; the server's log says which
            if entries[name].foreign(".") is not None or entries[name].manifest_url(".") is not None:
                names.append(name)
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
