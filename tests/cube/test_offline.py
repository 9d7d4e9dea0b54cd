"""With CUBE_OFFLINE=1 nothing is asked of a network, and what would have been is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cube import build, open_cube
from cube.archive.check import check
from cube.archive.copy import copy_cube
from cube.archive.copy_plan import plan_copy
from cube.archive.update import refresh
from cube.errors import BuildError, CubeError, ManifestError, OfflineError, ReadError
from cube.io import loop
from cube.io.ranges import read_head, read_range
from cube.io.stores import sign
from cube.manifest.open import Manifest, open_manifest
from cube.settings import get_settings
from cube.testing import ObjectStore, unique_values, write_cog

DATES = ("20240115", "20240210")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    for number, date in enumerate(DATES):
        write_cog(tmp_path / "files" / f"s_{date}_red.tif", unique_values((200, 300), "uint16", number), nodata=0)
    with ObjectStore(tmp_path / "files") as store:
        yield store


@pytest.fixture
def manifest(store: ObjectStore, tmp_path: Path) -> Manifest:
    return build([f"{store.url}/s_{date}_red.tif" for date in DATES], name="far", to=tmp_path / "far.cube")


@pytest.fixture
def offline(manifest: Manifest, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut the network off after the cube is built, and see that nothing was asked since."""
    monkeypatch.setenv("CUBE_OFFLINE", "1")
    get_settings.cache_clear()
    store.reset()
    yield
    assert store.counts().requests == 0
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.usefixtures("offline")
def test_a_read_names_the_source_and_the_tile_and_what_to_do(manifest: Manifest, store: ObjectStore) -> None:
    ds = open_cube(manifest)
    with pytest.raises(OfflineError, match="CUBE_OFFLINE=1") as raised:
        ds.load()
    text = str(raised.value)
    assert text.startswith(f"{store.url}/s_{DATES[0]}_red.tif: tile (0, 0) of level 0")
    assert "cube copy" in text


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "url", ["https://x.example/a.tif", "s3://bucket/a.tif", "az://files/a.tif", "gs://bucket/a.tif"]
)
def test_no_store_is_opened(url: str) -> None:
    for asked in (read_range(url, 0, 10), read_head(url, 10)):
        with pytest.raises(OfflineError, match="cube copy") as raised:
            loop.run(asked)
        assert raised.value.href == url


@pytest.mark.usefixtures("offline")
def test_what_signs_urls_is_not_called(store: ObjectStore) -> None:
    def patch_url(href: str) -> str:
        raise AssertionError(href)

    assert sign(f"{store.url}/a.tif", patch_url) is None


@pytest.mark.usefixtures("offline")
def test_remote_manifests_and_archives_are_named(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=rf"{store.url}/far.cube cannot be read: .*CUBE_OFFLINE=1.*cube copy"):
        open_manifest(f"{store.url}/far.cube")
    with pytest.raises(BuildError, match=rf"{store.url}/s_{DATES[0]}_red.tif: .*CUBE_OFFLINE=1"):
        build(f"{store.url}/s_{DATES[0]}_red.tif", to=tmp_path / "new.cube")
    with pytest.raises((BuildError, ReadError), match=r"CUBE_OFFLINE=1"):
        build(f"{store.url}/collection.json", to=tmp_path / "new.cube")


@pytest.mark.usefixtures("offline")
def test_a_look_at_the_sources_says_that_they_are_out_of_reach(manifest: Manifest) -> None:
    report = check(manifest)
    assert len(report.findings) == len(DATES)
    assert all("CUBE_OFFLINE=1" in finding.found for finding in report.findings)
    with pytest.raises(CubeError, match="CUBE_OFFLINE=1"):
        refresh(manifest)


@pytest.mark.usefixtures("offline")
def test_a_copy_cannot_be_taken(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"s_\d+_red\.tif: is on a network"):
        copy_cube(plan_copy(manifest, tmp_path / "to"))


def test_copies_and_local_files_are_read(
    manifest: Manifest, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_cube(manifest, mask_and_scale=False)["band_1"].values
    copy_cube(plan_copy(manifest, tmp_path / "to"))
    local = build(str(tmp_path / "files"), name="near", to=tmp_path / "near.cube")
    shutil.rmtree(manifest.url)
    monkeypatch.setenv("CUBE_OFFLINE", "1")
    get_settings.cache_clear()
    store.reset()
    for each in (tmp_path / "to" / "far.cube", local):
        for chunks in (None, "auto"):
            found = open_cube(each, chunks=chunks, mask_and_scale=False)
            np.testing.assert_array_equal(found["band_1"].values, expected)
    assert check(open_manifest(str(tmp_path / "to" / "far.cube"))).ok
    assert plan_copy(local, tmp_path / "again").requests == 0
    copy_cube(plan_copy(local, tmp_path / "again"))
    assert store.counts().requests == 0
    monkeypatch.undo()
    get_settings.cache_clear()


# The cache of tiles.


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Turn the cache on, in a folder of its own."""
    monkeypatch.setenv("CUBE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CUBE_CACHE_BYTES", "10000000")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.usefixtures("kept")
def test_a_tile_is_fetched_once_whatever_window_it_is_of(manifest: Manifest, store: ObjectStore) -> None:
    store.reset()
    ds = open_cube(manifest, mask_and_scale=False)["band_1"]
    first = ds.isel(time=0, y=slice(0, 100), x=slice(0, 100)).values
    assert store.counts().requests == 1
    assert (ds.isel(time=0, y=slice(50, 120), x=slice(20, 90)).values[:50] == first[50:, 20:90]).all()
    assert store.counts().requests == 1
    whole = ds.values
    store.reset()
    np.testing.assert_array_equal(open_cube(manifest, chunks="auto", mask_and_scale=False)["band_1"].values, whole)
    assert store.counts().requests == 0


@pytest.mark.usefixtures("kept")
def test_a_new_version_of_a_source_is_not_read_from_the_old_ones_tiles(
    manifest: Manifest, store: ObjectStore, tmp_path: Path
) -> None:
    open_cube(manifest).load()
    pixels = unique_values((200, 300), "uint16", 77)
    write_cog(tmp_path / "files" / f"s_{DATES[0]}_red.tif", pixels, nodata=0)
    found = open_cube(refresh(manifest).manifest, mask_and_scale=False)["band_1"].values
    np.testing.assert_array_equal(found[0], pixels)


@pytest.mark.usefixtures("kept")
def test_damaged_tiles_are_fetched_again(manifest: Manifest, store: ObjectStore, tmp_path: Path) -> None:
    expected = open_cube(manifest, mask_and_scale=False)["band_1"].values
    for path in (tmp_path / "cache" / "tiles").glob("??/*"):
        path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    store.reset()
    np.testing.assert_array_equal(open_cube(manifest, mask_and_scale=False)["band_1"].values, expected)
    assert store.counts().requests == len(DATES)


@pytest.mark.usefixtures("kept")
def test_offline_kept_tiles_are_read_and_others_named(
    manifest: Manifest, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = open_cube(manifest, mask_and_scale=False)["band_1"]
    expected = ds.isel(time=0).values
    monkeypatch.setenv("CUBE_OFFLINE", "1")
    get_settings.cache_clear()
    store.reset()
    np.testing.assert_array_equal(ds.isel(time=0).values, expected)
    with pytest.raises(OfflineError, match=f"s_{DATES[1]}_red.tif: tile .*cube copy"):
        ds.isel(time=1).load()
    assert store.counts().requests == 0


WORK = """
    import sys
    connections = []
    def watch(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
            connections.append(event)
    sys.addaudithook(watch)
    from cube import open_cube
    from cube.errors import OfflineError
    print(open_cube(sys.argv[1])["band_1"].sum().item() > 0)
    try:
        open_cube(sys.argv[2]).load()
    except OfflineError as error:
        print("refused", "cube copy" in str(error))
    print(connections)
"""


def test_a_process_of_its_own_connects_to_nothing(
    manifest: Manifest, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_cube(plan_copy(manifest, tmp_path / "to"))
    store.reset()
    monkeypatch.setenv("CUBE_OFFLINE", "1")
    command = [sys.executable, "-c", textwrap.dedent(WORK), str(tmp_path / "to" / "far.cube"), manifest.url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.split("\n") == ["True", "refused True", "[]", ""], result.stderr
    assert store.counts().requests == 0
