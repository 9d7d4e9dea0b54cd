"""The command that measures a store: tune."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from cube.cli.options import Json


def tune(
    target: Annotated[str, typer.Argument(help="The URL of a COG, or a cube by name or manifest.", metavar="URL")],
    max_bytes: Annotated[str, typer.Option("--max-bytes", help="The most to fetch: 64MB, 16MiB.")] = "64MB",
    as_json: Json = False,
) -> None:
    """Measure a store and propose the settings that suit it."""
    from cube.dataset import open_named
    from cube.explain import parse_bytes
    from cube.io.stores import is_url
    from cube.tune import tune as measure

    is_object = is_url(target) and not target.rstrip("/").endswith(".cube")
    found = measure(target if is_object else open_named(target), max_bytes=parse_bytes(max_bytes))
    sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n" if as_json else f"{found}\n")
