"""The command `python -m cube.testing.objectstore`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .behaviour import Bandwidth, Behaviour, Faults, Latency
from .server import run

_EPILOG = """\
Latencies and faults are drawn from --seed, for each request in the order of arrival. Shares are of requests, from 0 to
1. What was asked and answered: GET URL/-/counts and URL/-/records; POST URL/-/reset begins anew.

example: python -m cube.testing.objectstore ./cogs --port 9001 --latency-ms 50 --sigma 0.4 --tail-share 0.01 --tail-s 2
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cube.testing.objectstore",
        usage="%(prog)s ROOT [options]",
        description="Serves a folder over HTTP as a slow or troubled object store would: Range, ETag, conditions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("root", type=Path, nargs="?", metavar="ROOT", help="the folder whose files are served")
    add("--port", type=int, metavar="N", default=0, help="0, the default, takes a free one; the URL is printed")
    add("--seed", type=int, metavar="N", default=0, help="of all that is drawn (0)")
    add("--until-stdin-closes", action="store_true", help="end with the process that holds stdin open")
    add("--ceiling", action="store_true", help="measure what the store itself can do on this machine, and end")

    add = parser.add_argument_group("latency, from a request to the first byte of its answer").add_argument
    add("--latency-ms", type=float, metavar="MS", default=0.0, help="its median (0)")
    add("--sigma", type=float, metavar="X", default=0.0, help="of a log-normal latency; 0, the default, is a fixed one")
    add("--tail-share", type=float, metavar="SHARE", default=0.0, help="requests that take --tail-s instead")
    add("--tail-s", type=float, metavar="S", default=0.0, help="seconds")

    add = parser.add_argument_group("bandwidth, in MB (10^6 bytes) a second; no limit by default").add_argument
    add("--connection-mbs", type=float, metavar="MBS", help="of each connection")
    add("--total-mbs", type=float, metavar="MBS", help="of all together")

    add = parser.add_argument_group("faults").add_argument
    add("--throttle-share", type=float, metavar="SHARE", default=0.0, help="answered with --throttle-status")
    add(
        "--requests-per-s",
        type=float,
        metavar="N",
        help="what comes faster is throttled too; a second's worth may come at once",
    )
    add("--throttle-status", type=int, choices=(503, 429), default=503, help="(503)")
    add("--retry-after-s", type=int, metavar="S", help="sent with what is throttled; without it, no Retry-After")
    add(
        "--reset-share",
        type=float,
        metavar="SHARE",
        default=0.0,
        help="connections reset, half before the head, half in mid-body",
    )
    add(
        "--truncate-share", type=float, metavar="SHARE", default=0.0, help="bodies that end before their Content-Length"
    )
    add("--short-share", type=float, metavar="SHARE", default=0.0, help="206 for fewer bytes than were asked for")
    add("--hang-share", type=float, metavar="SHARE", default=0.0, help="requests that are never answered")
    add("--at-most", type=int, metavar="N", help="so many faults, then none any more")
    return parser


def _behaviour(given: argparse.Namespace) -> Behaviour:
    connection, total = (mbs and mbs * 1e6 for mbs in (given.connection_mbs, given.total_mbs))
    return Behaviour(
        latency=Latency(given.latency_ms / 1000, sigma=given.sigma, tail_share=given.tail_share, tail_s=given.tail_s),
        bandwidth=Bandwidth(connection=connection, total=total),
        faults=Faults(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Faults)}),
        seed=given.seed,
    )


def main(arguments: list[str] | None = None) -> None:
    """Serve a folder until interrupted."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.ceiling:
        from .ceiling import print_ceiling

        print_ceiling()
        return
    if given.root is None or not given.root.is_dir():
        parser.error("which folder?" if given.root is None else f"there is no folder {given.root}")
    try:
        behaviour = _behaviour(given)
    except ValueError as error:
        parser.error(str(error))
    try:
        run(given.root.absolute(), behaviour, given.port, until_stdin_closes=given.until_stdin_closes)
    except OSError as error:
        parser.exit(1, f"cannot listen on port {given.port}: {error}\n")
