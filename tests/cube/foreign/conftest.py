"""A cube, and what other programs make of it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cube import build, open_cube
from cube.references import to_kerchunk
from cube.testing import unique_values, write_archive, write_cog


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """A folder with an archive (2 dates, 5 bands, 256 pixels), its cube, and its references: refs.json, refs.parq."""
    folder = tmp_path_factory.mktemp("here")
    write_archive(folder / "archive", size=256, tile=64, dates=("2024-04-09", "2024-04-24"))
    manifest = build(folder / "archive", name="a", to=folder / "a.cube")
    to_kerchunk(manifest, folder / "refs.json")
    to_kerchunk(manifest, folder / "refs.parq")
    document = json.loads((folder / "refs.json").read_text())
    return SimpleNamespace(
        folder=folder,
        manifest=manifest,
        stored=open_cube(manifest, mask_and_scale=False).load(),
        decoded=open_cube(manifest).load(),
        refs=document["refs"],
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """As `here`, of one band without a predictor: VirtualiZarr has no codec for one that comes in references."""
    folder = tmp_path_factory.mktemp("plain")
    for i in (1, 2):
        values = unique_values((100, 130), "uint16", seed=i)
        write_cog(folder / f"2024-04-0{i}.tif", values, blocksize=64, compress="ZSTD", predictor="NO", nodata=0)
    manifest = build(folder, pattern="{time:%Y-%m-%d}.tif", to=folder / "a.cube")
    to_kerchunk(manifest, folder / "refs.json")
    return SimpleNamespace(folder=folder, manifest=manifest, stored=open_cube(manifest, mask_and_scale=False).load())


@pytest.fixture
def write_refs(tmp_path):
    """Return a function that writes references and gives their path."""

    def write(document, name="refs.json"):
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write
