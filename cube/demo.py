"""The whole job on an archive made on the spot: scan, build, serve, open over HTTP, compute, check, export."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cube.algebra.masks import SCL_CLEAR
from cube.archive.build import build
from cube.catalog import add_entry, kerchunk_entry, manifest_entry, zarr_entry
from cube.dataset import open_cube
from cube.engine.cluster import connect, iterate_blocks
from cube.engine.cost import readable_bytes
from cube.errors import CubeError
from cube.info import write_preview
from cube.manifest.open import Manifest
from cube.references import to_kerchunk
from cube.testing import Archive, ObjectStore, write_archive
from cube.testing.archive import DATES
from cube.views import open_view
from cube.write import ramp, write_cog, write_png, write_zarr

LATENCY_S = 0.05
PORT = 9000
DESCRIPTION = "A made-up landscape as Sentinel-2 would see it: cloudy scenes of one growing season"
LICENCE = "CC0-1.0"
_SERVER_START_S = 60


@dataclass(frozen=True, slots=True)
class Step:
    """What one step took."""

    what: str
    requests: int
    """To the object store."""
    bytes: int
    """From the object store."""
    seconds: float


class _Report:
    """Runs steps, shows them as they end, and keeps what they took."""

    def __init__(self, store: ObjectStore) -> None:
        from rich.console import Console

        self.store = store
        self.steps: list[Step] = []
        self.console = Console(stderr=True)

    @contextmanager
    def step(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Time a step and count what it asks of the store; yields a progress callback (done, total)."""
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        before, began = self.store.counts(), time.perf_counter()
        columns = (SpinnerColumn(), TextColumn(what), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        after = self.store.counts()
        step = Step(what, after.requests - before.requests, after.bytes - before.bytes, time.perf_counter() - began)
        self.steps.append(step)
        self.say(f"{step.seconds:6.1f} s  {what}")

    def say(self, text: str) -> None:
        """Print a line, whole, above the progress bars."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def table(self) -> str:
        """Return the steps as a table in Markdown."""
        rows = [
            f"| {each.what} | {each.requests} | {readable_bytes(each.bytes)} | {each.seconds:.1f} |"
            for each in self.steps
        ]
        return "\n".join(["| step | requests | bytes | seconds |", "|---|---:|---:|---:|", *rows]) + "\n"


def run(folder: Path, *, size: int, keep: bool) -> None:
    """Do the whole job in `folder` and print what each step took.

    Raises:
        CubeError: A step failed, or a result is not what the archive's generator knows to be true.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ObjectStore(folder, latency_s=LATENCY_S) as store:
        report = _Report(store)
        report.say(f"object store with {LATENCY_S * 1e3:.0f} ms to first byte: {store.url}")
        with report.step(f"write {len(DATES)} scenes of {size} x {size} pixels as COGs") as progress:
            archive = write_archive(folder / "archive", size=size, progress=progress)
        catalog = folder / "served.yaml"
        manifest = _build(report, store, folder, catalog)
        with _serve(catalog, PORT if keep else 0) as url:
            _compute(report, manifest, archive, f"{url}/datasets/s2.zarr", folder)
            _export(report, manifest, folder)
            _write_catalog(report, folder, f"http://127.0.0.1:{PORT}/datasets/s2.zarr")
            (folder / "report.json").write_text(json.dumps([asdict(step) for step in report.steps], indent=1))
            sys.stdout.write("\n" + report.table())
            sys.stdout.write(f"\npictures: {folder / 'scene.png'}, {folder / 'ndvi.png'}; COG: {folder / 'ndvi.tif'}\n")
            if keep:
                _wait(url)


def _build(report: _Report, store: ObjectStore, folder: Path, catalog: Path) -> Manifest:
    with report.step("scan the headers and build the manifest") as progress:
        manifest = build(
            f"{store.url}/archive/items.json",
            name="s2",
            to=folder / "served.cube",
            attributes={"description": DESCRIPTION, "license": LICENCE},
            progress=progress,
        )
        add_entry(
            catalog, manifest_entry("s2", manifest.url, catalog=catalog, description=DESCRIPTION, license=LICENCE)
        )
    with report.step("first picture, from overviews"):
        shown = write_preview(manifest, folder / "scene.png")
    report.say(f"          {folder / 'scene.png'}: {shown}")
    return manifest


def _compute(report: _Report, manifest: Manifest, archive: Archive, url: str, folder: Path) -> None:
    """Compute the composite over HTTP as a stranger would, and on the manifest; compare both with the truth."""
    _, truths = archive.truth_ndvi_composite()
    truth = truths[0]
    with report.step("open over HTTP with plain xarray"):
        served = xr.open_dataset(url, chunks={"time": -1, "y": 1024, "x": 1024})
    with connect("local") as client:
        # Pixels that no date shows clear are NaN on purpose; numpy would say so once a block.
        client.run(warnings.filterwarnings, "ignore", message="All-NaN slice encountered")
        with report.step("cloud-masked median NDVI over HTTP, plain xarray on Dask"):
            ndvi = ((served.nir - served.red) / (served.nir + served.red)).where(served.scl.isin(SCL_CLEAR))
            over_http = ndvi.median("time").compute()
        _check("NDVI over HTTP", over_http.values, truth)
        with report.step("the same on the manifest, written as a COG") as progress:
            view = open_view(manifest, "ndvi", mask="scl", composite="median")
            total = view.data.npartitions
            blocks = iterate_blocks(view.data, client)
            write_cog(folder / "ndvi.tif", view, blocks, progress=lambda done: progress(done, total))
    written = open_cube(folder / "ndvi.tif")["ndvi"].values
    _check("NDVI on the manifest", written, truth)
    write_png(folder / "ndvi.png", ramp(written, 0.0, 0.9))
    clear = np.isfinite(truth).mean()
    report.say(f"          both equal the generator's truth to float32 rounding; {clear:.1%} of pixels were ever clear")


def _check(what: str, values: np.ndarray, truth: np.ndarray) -> None:
    """Compare with the truth: the same pixels missing, the others equal to a few units of float32's last place."""
    if values.shape != truth.shape or not np.array_equal(np.isnan(values), np.isnan(truth)):
        raise CubeError(f"{what} is missing where the truth is not, or the other way round; please report this")
    worst = float(np.nanmax(np.abs(values - truth), initial=0))
    if worst > 4 * np.finfo("float32").eps:
        raise CubeError(f"{what} is up to {worst:.3g} away from the truth; please report this")


def _export(report: _Report, manifest: Manifest, folder: Path) -> None:
    path = folder / "served.json"
    with report.step("export Kerchunk references"):
        to_kerchunk(manifest, path)
    with report.step("open them with engine='kerchunk' and compare a scene"):
        theirs = xr.open_dataset(str(path), engine="kerchunk", chunks={})["nir"].isel(time=0).load()
    ours = open_cube(manifest, "nir")["nir"].isel(time=0).load()
    if not np.array_equal(theirs.values, ours.values, equal_nan=True):
        raise CubeError("the Kerchunk references read other pixels than the cube; please report this")


def _write_catalog(report: _Report, folder: Path, url: str) -> None:
    """Write what stays when the store is gone: a manifest of the files themselves, references, a Zarr copy."""
    catalog = folder / "catalog.yaml"
    common: dict[str, Any] = {"catalog": catalog, "license": LICENCE}
    with report.step("write the catalogue and a plain Zarr copy"):
        manifest = build(
            folder / "archive" / "items.json",
            name="s2",
            to=folder / "s2.cube",
            attributes={"description": DESCRIPTION, "license": LICENCE},
        )
        to_kerchunk(manifest, folder / "s2.json")
        copy = open_cube(manifest, chunks={"time": 1, "y": 1024, "x": 1024}, mask_and_scale=False)
        write_zarr(folder / "s2.zarr", copy)
        for entry in (
            manifest_entry("s2", folder / "s2.cube", description=DESCRIPTION, **common),
            zarr_entry("s2-http", url, description=f"{DESCRIPTION}, from `cube serve`", license=LICENCE),
            kerchunk_entry("s2-kerchunk", folder / "s2.json", description=f"{DESCRIPTION}, as references", **common),
            zarr_entry("s2-zarr", folder / "s2.zarr", description=f"{DESCRIPTION}, as a copy", **common),
        ):
            add_entry(catalog, entry)


@contextmanager
def _serve(catalog: Path, port: int) -> Iterator[str]:
    """Run `cube serve` as a process of its own and yield its URL."""
    # -P: a user's cube.py in the current folder must not stand in for the package.
    command = [sys.executable, "-P", "-m", "cube", "serve", str(catalog), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own command
    lines: queue.Queue[str] = queue.Queue()

    def drain() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("")

    threading.Thread(target=drain, daemon=True).start()
    try:
        yield _find_url(lines)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _find_url(lines: queue.Queue[str]) -> str:
    try:
        first = lines.get(timeout=_SERVER_START_S)
    except queue.Empty:
        raise CubeError(f"the server did not start within {_SERVER_START_S} s") from None
    found = [word for word in first.split() if word.startswith("http://")]
    if not found:
        raise CubeError("the server did not start; `cube serve` in another terminal says why")
    return found[0]


def _wait(url: str) -> None:
    sys.stdout.write(
        f"""
The server is still running, and the store behind it. In Python, here or anywhere that reaches this machine:

    import xarray as xr
    ds = xr.open_dataset("{url}/datasets/s2.zarr", chunks={{}})

In a browser: {url}/datasets

Ctrl-C ends both.
"""
    )
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
