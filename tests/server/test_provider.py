"""The registry of cubes: opened on first use, looked at again, kept when its manifest cannot be reached."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import cube
from cube.errors import ManifestError
from cube.testing import ObjectStore, unique_values, write_cog
from server.errors import UnknownDatasetError
from server.provider import CubeProvider, CubeRegistry


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    path = write_cog(tmp_path / "a.tif", unique_values((64, 64), "uint16"), nodata=0)
    return cube.build(path, to=tmp_path / "a.cube").url


def test_nothing_is_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    registry = CubeRegistry({"away": str(tmp_path / "away.cube")}, refresh_s=60)
    assert registry.ids() == ["away"]
    assert CubeProvider(registry).get_datasets() == ["away"]
    with pytest.raises(ManifestError, match=r"away\.cube"):
        asyncio.run(registry.find("away"))
    for unknown, level in (("other", 0), ("other", 3)):
        with pytest.raises(UnknownDatasetError, match="'other'"):
            asyncio.run(registry.find(unknown, level))


def test_a_level_that_is_not_there_is_unknown(manifest: str) -> None:
    registry = CubeRegistry({"a": manifest}, refresh_s=60)
    with pytest.raises(UnknownDatasetError, match="level 7"):
        asyncio.run(registry.find("a", 7))


def test_a_store_is_the_same_until_the_manifest_changes(manifest: str, tmp_path: Path) -> None:
    fresh, patient = (CubeRegistry({"a": manifest}, refresh_s=seconds) for seconds in (0, 3600))
    before = asyncio.run(fresh.find("a")), asyncio.run(patient.find("a"))
    assert asyncio.run(fresh.find("a")) is before[0]
    write_cog(tmp_path / "b.tif", unique_values((64, 64), "uint16", seed=1), nodata=0)
    changed = cube.build(tmp_path / "b.tif", to=manifest)
    assert asyncio.run(fresh.find("a")).version == changed.version != before[0].version
    assert asyncio.run(patient.find("a")) is before[1]


def test_an_open_cube_outlives_its_manifests_absence(
    manifest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CubeRegistry({"a": manifest}, refresh_s=0)
    store = asyncio.run(registry.find("a"))
    shutil.move(manifest, tmp_path / "elsewhere")
    assert asyncio.run(registry.find("a")) is store
    assert "cannot be looked at again" in caplog.text


def test_who_comes_together_opens_one(manifest: str) -> None:
    registry = CubeRegistry({"a": manifest}, refresh_s=0)

    async def together() -> set[int]:
        return {id(store) for store in await asyncio.gather(*[registry.find("a") for _ in range(100)])}

    assert len(asyncio.run(together())) == 1


def test_while_one_looks_for_a_new_version_others_go_on(manifest: str, tmp_path: Path) -> None:
    with ObjectStore(tmp_path, latency_s=0.2) as store:
        registry = CubeRegistry({"a": f"{store.url}/{Path(manifest).name}"}, refresh_s=0)

        async def scenario() -> tuple[bool, bool]:
            opened = await registry.find("a")
            looking = asyncio.create_task(registry.find("a"))
            await asyncio.sleep(0)
            found = await registry.find("a")
            waited = looking.done()
            return found is opened is await looking, waited

        assert asyncio.run(scenario()) == (True, False)


def test_a_dataset_is_opened_once_a_version(manifest: str, tmp_path: Path) -> None:
    provider = CubeProvider(CubeRegistry({"a": manifest}, refresh_s=0))
    assert provider.get_dataset("other") is None
    first = provider.get_dataset("a")
    assert provider.get_dataset("a") is first
    write_cog(tmp_path / "b.tif", unique_values((32, 64), "uint16"), nodata=0)
    cube.build(tmp_path / "b.tif", to=manifest)
    second = provider.get_dataset("a")
    assert second is not None
    assert second.sizes == {"y": 32, "x": 64}


def test_a_cube_of_several_grids_is_served_once_it_is_placed(tmp_path: Path) -> None:
    for name, crs in (("a", "EPSG:32633"), ("b", "EPSG:32634")):
        write_cog(tmp_path / f"{name}.tif", unique_values((64, 64), "uint16"), crs=crs, nodata=0)
    manifest = cube.build([tmp_path / "a.tif", tmp_path / "b.tif"], to=tmp_path / "m.cube")
    registry = CubeRegistry({"m": manifest.url}, refresh_s=0)
    with pytest.raises(UnknownDatasetError, match=r"the sources of 'm' lie on 2 grids:\n  1 in EPSG:3263"):
        asyncio.run(registry.find("m"))
    placed = cube.place(manifest, crs="EPSG:32633", resolution=20, bbox=(13.64, 48.73, 13.65, 48.75))
    store = asyncio.run(registry.find("m"))
    assert (store.version, store.manifest.grid) == (placed.version, placed.grid)
    dataset = CubeProvider(registry).get_dataset("m")
    assert dataset is not None
    assert dataset.identical(cube.open_cube(placed))
