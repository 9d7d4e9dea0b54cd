"""The Zarr store of a cube: what zarr and xarray find in it is what the cube holds, in version 2 and 3."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import odc.geo.xr  # noqa: F401 - the accessor .odc
import pytest
import rioxarray  # noqa: F401 - the accessor .rio
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import cube
from cube.errors import SelectionError, SourceNotFoundError
from cube.io.trace import trace
from cube.manifest.open import Manifest, open_manifest
from cube.store import Chunk, CubeStore, ZarrStore
from cube.testing import unique_values, write_archive, write_cog

# rioxarray and odc-geo still multiply affines with `*`.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

FORMATS = (2, 3)
SHAPE = (1300, 1100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of three bands in tiles of 256: more than one chunk, none whole at the edges."""
    root = tmp_path_factory.mktemp("store") / "scenes"
    for number, date in enumerate(("20240105", "20240301")):
        red = unique_values(SHAPE, "uint16", seed=number)
        red[:1024, :1024] = 0
        options: dict[str, Any] = {"driver": "GTiff", "blockxsize": 256, "blockysize": 256}
        write_cog(root / f"T33UVP_{date}_red.tif", red, nodata=0, scale=0.0001, offset=-0.1, **options)
        write_cog(root / f"T33UVP_{date}_flags.tif", unique_values(SHAPE, "uint8", seed=number) % 4, **options)
        write_cog(root / f"T33UVP_{date}_height.tif", unique_values(SHAPE, "float32", seed=number), **options)
    return root


@pytest.fixture(scope="module")
def scenes(folder: Path) -> Manifest:
    return cube.build(folder, attributes={"title": "scenes"})


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A layer without time, geographic, with overviews and an infinite nodata value."""
    path = tmp_path_factory.mktemp("layer") / "heights.tif"
    values = unique_values((700, 900), "float64")
    values[:100, :100] = np.inf
    transform = Affine(0.01, 0, 5, 0, -0.01, 50)
    return cube.build(write_cog(path, values, crs="EPSG:4326", transform=transform, nodata=np.inf, blocksize=128))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """An archive whose STAC items say that a band is classes."""
    archive = write_archive(tmp_path_factory.mktemp("classes"), size=64, dates=["2024-04-09"], tile=64)
    return cube.build(archive.items)


@pytest.fixture(params=["scenes", "layer", "classes"])
def manifest(request: pytest.FixtureRequest) -> Manifest:
    return request.getfixturevalue(request.param)


def get(store: CubeStore, key: str, zarr_format: int) -> bytes | None:
    return asyncio.run(store.get(key, zarr_format))


def alike(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset without what can only be said by a file, or only by one that is open."""
    dataset = dataset.copy()
    for name in ("Conventions", "values"):
        dataset.attrs.pop(name, None)
    for variable in dataset.variables.values():
        for name in ("_CRS", "grid_mapping"):
            variable.attrs.pop(name, None)
    return dataset


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize("mask_and_scale", [True, False])
def test_xarray_opens_what_open_cube_opens(manifest: Manifest, zarr_format: int, mask_and_scale: bool) -> None:
    store = ZarrStore(CubeStore(manifest), zarr_format=zarr_format)
    opened = xr.open_zarr(store, mask_and_scale=mask_and_scale, zarr_format=zarr_format, chunks=None)
    expected = cube.open_cube(manifest, mask_and_scale=mask_and_scale)
    assert opened.rio.crs == expected.rio.crs
    assert opened.odc.geobox == expected.odc.geobox == manifest.grid.geobox
    assert all(array.attrs["grid_mapping"] == "spatial_ref" for array in opened.data_vars.values())
    xr.testing.assert_identical(alike(opened.load()), alike(expected.load()))
    assert [opened[name].dtype for name in opened.variables] == [expected[name].dtype for name in opened.variables]


def test_classes_stay_integers_and_say_what_they_mean(classes: Manifest) -> None:
    for zarr_format in FORMATS:
        store = ZarrStore(CubeStore(classes), zarr_format=zarr_format)
        scl = xr.open_zarr(store, zarr_format=zarr_format, chunks=None)["scl"]
        assert scl.dtype == "uint8"
        assert scl.attrs["flag_meanings"].split()[9] == "cloud_high_probability"


def test_zeros_without_a_nodata_tag_stay_zeros(scenes: Manifest) -> None:
    for zarr_format in FORMATS:
        store = ZarrStore(CubeStore(scenes), zarr_format=zarr_format)
        flags = xr.open_zarr(store, zarr_format=zarr_format, chunks=None)["flags"]
        assert flags.dtype == "uint8"
        assert int((flags == 0).sum()) > 0


def refuse(token: str) -> float:
    raise AssertionError(f"{token} is not JSON")


def test_documents_are_strict_json_and_consolidated(manifest: Manifest) -> None:
    store = CubeStore(manifest)
    for zarr_format in FORMATS:
        documents = {
            key: json.loads(document, parse_constant=refuse) for key, document in store.metadata(zarr_format).items()
        }
        for key, document in documents.items():
            if zarr_format == 3 and key != "zarr.json":
                name = key.removesuffix("/zarr.json")
                assert documents["zarr.json"]["consolidated_metadata"]["metadata"][name] == document
            if zarr_format == 2 and key != ".zmetadata":
                assert documents[".zmetadata"]["metadata"][key] == document


def test_gdals_attribute_is_said_in_version_2_alone(scenes: Manifest) -> None:
    store = CubeStore(scenes)
    assert json.loads(store.metadata(2)["red/.zattrs"])["_CRS"]["url"].endswith("EPSG/0/32633")
    opened = xr.open_zarr(ZarrStore(store), chunks=None)
    # A mapping among the attributes would keep xarray from writing netCDF.
    assert not any(isinstance(value, dict) for array in opened.values() for value in array.attrs.values())


def test_both_versions_give_the_same_bytes(scenes: Manifest) -> None:
    store = CubeStore(scenes)
    assert get(store, "red/c/1/1/0", 3) == get(store, "red/1.1.0", 2)
    assert get(store, "x/c/0", 3) == get(store, "x/0", 2)
    assert get(store, "spatial_ref/c", 3) == get(store, "spatial_ref/0", 2)


def test_a_chunk_at_the_edge_is_whole_and_padded(scenes: Manifest, folder: Path) -> None:
    encoded = get(CubeStore(scenes), "height/c/0/1/1", 3)
    chunk = np.frombuffer(numcodecs.blosc.decompress(encoded), "<f4").reshape(1024, 1024)
    stored = cube.open_cube(scenes, "height", mask_and_scale=False)["height"][0].values
    height, width = SHAPE[0] - 1024, SHAPE[1] - 1024
    assert (chunk[:height, :width] == stored[1024:, 1024:]).all()
    assert np.isnan(chunk[height:]).all()
    assert np.isnan(chunk[:, width:]).all()


def test_a_chunk_of_nodata_is_a_chunk(scenes: Manifest) -> None:
    encoded = get(CubeStore(scenes), "red/c/0/0/0", 3)
    assert not np.frombuffer(numcodecs.blosc.decompress(encoded), "<u2").any()


@pytest.mark.parametrize(
    ("tile", "shape", "chunks"),
    [
        ((256, 256), (3000, 3000), (1024, 1024)),
        ((512, 512), (600, 3000), (600, 1024)),
        ((768, 320), (3000, 3000), (768, 960)),
        ((2048, 16), (3000, 3000), (2048, 1024)),
        ((512, 512), (300, 200), (300, 200)),
    ],
)
def test_chunks_are_whole_tiles_near_1024(
    tmp_path: Path, tile: tuple[int, int], shape: tuple[int, int], chunks: tuple[int, int]
) -> None:
    zeros = np.zeros(shape, "uint8")
    path = write_cog(tmp_path / "a.tif", zeros, driver="GTiff", blockysize=tile[0], blockxsize=tile[1])
    assert CubeStore(cube.build(path)).chunks == chunks


def test_each_level_is_a_store(layer: Manifest) -> None:
    assert len(layer.levels) > 1
    for level in range(len(layer.levels)):
        opened = xr.open_zarr(ZarrStore(CubeStore(layer, level=level)), chunks=None)
        xr.testing.assert_identical(alike(opened.load()), alike(cube.open_cube(layer, level=level).load()))
    with pytest.raises(SelectionError, match="level 9"):
        CubeStore(layer, level=9)


@pytest.fixture(scope="module")
def stores(scenes: Manifest, layer: Manifest) -> dict[tuple[str, int], tuple[CubeStore, frozenset[str]]]:
    found = {}
    for name, manifest in (("scenes", scenes), ("layer", layer)):
        store = CubeStore(manifest, chunks=(512, 512))
        for zarr_format in FORMATS:
            found[name, zarr_format] = store, frozenset(store.list_keys(zarr_format))
    return found


@given(
    name=st.sampled_from(["scenes", "layer"]),
    zarr_format=st.sampled_from(FORMATS),
    array=st.sampled_from(["red", "band_1", "height", "x", "time", "spatial_ref", "", "c", "RED"]),
    parts=st.lists(
        st.sampled_from(["c", "0", "1", "2", "3", "00", "+1", "-1", "1_0", "٣", "1 ", "", "9" * 5000]), max_size=4
    ),
    separator=st.sampled_from("/."),
)
def test_only_canonical_keys_name_something(
    stores: dict[tuple[str, int], tuple[CubeStore, frozenset[str]]],
    name: str,
    zarr_format: int,
    array: str,
    parts: list[str],
    separator: str,
) -> None:
    store, keys = stores[name, zarr_format]
    key = f"{array}/{separator.join(parts)}" if parts else array
    assert (store.find(key, zarr_format) is not None) == (key in keys)


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize("name", ["scenes", "layer"])
def test_every_listed_key_is_there_and_folders_agree(
    stores: dict[tuple[str, int], tuple[CubeStore, frozenset[str]]], name: str, zarr_format: int
) -> None:
    store, keys = stores[name, zarr_format]
    assert all(store.find(key, zarr_format) is not None for key in keys)
    folders = {""} | {key[: match.start()] for key in keys for match in re.finditer("/", key)}
    for folder in sorted(folders):
        start = f"{folder}/" if folder else ""
        expected = {key.removeprefix(start).partition("/")[0] for key in keys if key.startswith(start)}
        assert store.list_names(folder, zarr_format) == sorted(expected)
    for absent in ("nothing", "red/c/9", "red/d", "red/c/0/0/0/0", "red/c/00"):
        assert store.list_names(absent, zarr_format) == []


def test_opening_and_metadata_ask_no_source_for_anything(scenes: Manifest) -> None:
    with trace() as asked:
        store = CubeStore(open_manifest(scenes.url, scenes.version))
        for key in [*store.metadata(3), "x/c/0", "time/c/0"]:
            get(store, key, 3)
        assert store.find("red/c/0/1/1", 3) == Chunk("red", (0, 1, 1))
    assert [record.href for record in asked.records if record.href.endswith(".tif")] == []


def test_a_tag_stands_for_all_bytes(scenes: Manifest, layer: Manifest) -> None:
    tags = [CubeStore(scenes).tag, CubeStore(scenes, chunks=(256, 256)).tag, CubeStore(layer).tag]
    tags += [CubeStore(layer, level=1).tag]
    assert len(set(tags)) == len(tags)
    assert CubeStore(open_manifest(scenes.url)).tag == tags[0]


def test_a_failed_read_is_an_error_and_never_absent(tmp_path: Path) -> None:
    path = write_cog(tmp_path / "gone.tif", unique_values((64, 64), "uint16"), nodata=0)
    store = CubeStore(cube.build(path))
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"gone\.tif"):
        get(store, "band_1/c/0/0", 3)
    group = zarr.open_group(ZarrStore(store), mode="r")
    with pytest.raises(SourceNotFoundError, match=r"gone\.tif"):
        group["band_1"][:]


def test_a_store_pickles_to_its_name(scenes: Manifest) -> None:
    for zarr_format in FORMATS:
        store = ZarrStore(CubeStore(scenes, level=0), zarr_format=zarr_format)
        pickled = pickle.dumps(store)
        again = pickle.loads(pickled)
        assert len(pickled) < 1000
        assert again == store
        assert hash(again) == hash(store)
        group = zarr.open_group(again, mode="r", zarr_format=zarr_format)
        assert group["red"].shape == (2, *SHAPE)
    assert ZarrStore(CubeStore(scenes), zarr_format=2) != ZarrStore(CubeStore(scenes), zarr_format=3)


def test_parts_of_a_key_are_given(scenes: Manifest) -> None:
    store = ZarrStore(CubeStore(scenes))
    whole = get(CubeStore(scenes), "x/c/0", 3)
    assert whole is not None
    ranges = [None, RangeByteRequest(3, 9), OffsetByteRequest(5), SuffixByteRequest(4), SuffixByteRequest(0)]
    parts = asyncio.run(
        store.get_partial_values(default_buffer_prototype(), [("x/c/0", part) for part in ranges] + [("x/c/1", None)])
    )
    found = [None if part is None else part.to_bytes() for part in parts]
    assert found == [whole, whole[3:9], whole[5:], whole[-4:], b"", None]


def test_the_store_is_read_only(scenes: Manifest) -> None:
    store = ZarrStore(CubeStore(scenes))
    value = default_buffer_prototype().buffer.from_bytes(b"1")
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.set("x/c/0", value))
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.delete("x/c/0"))


def test_zarr_walks_the_store_without_consolidated_metadata(scenes: Manifest) -> None:
    group = zarr.open_group(ZarrStore(CubeStore(scenes)), mode="r", use_consolidated=False)
    assert sorted(group.array_keys()) == ["flags", "height", "red", "spatial_ref", "time", "x", "y"]
