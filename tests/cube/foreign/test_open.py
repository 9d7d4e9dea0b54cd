"""Stores and references that other programs wrote open as cubes: the same numbers, cut to what is asked for."""

from __future__ import annotations

import json
import pickle
import warnings

import dask
import icechunk
import numpy as np
import pytest
import virtualizarr
import xarray as xr
import zarr
from kerchunk.df import refs_to_dataframe
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr.parsers import KerchunkJSONParser
from zarr.errors import ZarrUserWarning

from cube import open_cube
from cube.dataset import open_named
from cube.errors import CatalogError, ReadError, ReferencesError, SelectionError
from cube.foreign.find import Foreign, find_foreign
from cube.foreign.open import find_version, open_foreign
from cube.references import to_kerchunk
from cube.testing import ObjectStore

BANDS = ("blue", "green", "nir", "red", "scl")


def assert_stored(found, here):
    for band in BANDS:
        np.testing.assert_array_equal(found[band].values, here.stored[band].values)
    np.testing.assert_array_equal(found.time.values, here.stored.time.values)


def virtual(plain):
    """Return references as VirtualiZarr's dataset."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    parser = KerchunkJSONParser(fs_root=f"file://{plain.folder}/")
    return virtualizarr.open_virtual_dataset(f"file://{plain.folder}/refs.json", registry, parser)


def in_kerchunk_s_parquet(here, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pandas' of fastparquet, which kerchunk writes with
        refs_to_dataframe({"version": 1, "refs": here.refs}, str(folder / "third.parq"), record_size=20)
    return folder / "third.parq", [here.folder.as_posix()]


def with_templates(here, folder):
    refs = {
        key: ["{{root}}" + value[0].removeprefix(here.folder.as_posix()), *value[1:]]
        if isinstance(value, list)
        else value
        for key, value in here.refs.items()
    }
    document = {"version": 1, "templates": {"root": here.folder.as_posix()}, "refs": refs}
    (folder / "templates.json").write_text(json.dumps(document))
    return folder / "templates.json", [here.folder.as_posix()]


def with_called_templates(here, folder):
    refs = {
        key: ["{{ f(name='" + value[0].removeprefix(f"{here.folder.as_posix()}/") + "') }}", *value[1:]]
        if isinstance(value, list)
        else value
        for key, value in here.refs.items()
    }
    document = {"version": 1, "templates": {"f": here.folder.as_posix() + "/{{name}}"}, "refs": refs}
    (folder / "called.json").write_text(json.dumps(document))
    return folder / "called.json", [here.folder.as_posix()]


def of_version_0(here, folder):
    (folder / "plain.json").write_text(json.dumps(here.refs))
    return folder / "plain.json", [here.folder.as_posix()]


REFERENCES = [
    with_templates,
    with_called_templates,
    of_version_0,
    in_kerchunk_s_parquet,
]


@pytest.mark.parametrize("write", REFERENCES)
def test_references_of_others_hold_the_cube_s_numbers(here, tmp_path, write):
    path, allow = write(here, tmp_path)
    assert_stored(open_cube(path, allow=allow, mask_and_scale=False), here)
    with pytest.raises(ReferencesError, match=r"points to .*archive.* and only what lies below .* is allowed"):
        open_cube(path, mask_and_scale=False).red.load()


@pytest.mark.parametrize(("ending", "zarr_format"), [("json", 2), ("json", 3), ("parquet", 2)])
def test_what_virtualizarr_writes(plain, tmp_path, ending, zarr_format):
    path = tmp_path / f"vz.{ending}"
    dataset = virtual(plain)
    if ending == "parquet":  # it cannot hold a scalar
        dataset = dataset.drop_vars("spatial_ref")
        for said in (dataset.band_1.attrs, dataset.band_1.encoding):
            said.pop("grid_mapping", None)
            said.pop("coordinates", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset.vz.to_kerchunk(str(path), format=ending, zarr_format=zarr_format)
    found = open_cube(path, allow=str(plain.folder), mask_and_scale=False)
    np.testing.assert_array_equal(found.band_1.values, plain.stored.band_1.values)
    np.testing.assert_array_equal(found.time.values, plain.stored.time.values)


def test_what_virtualizarr_writes_to_icechunk(plain, tmp_path):
    path = tmp_path / "vz.icechunk"
    config = icechunk.RepositoryConfig.default()
    prefix = f"file://{plain.folder}/"
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(plain.folder)))
    )
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)), config)
    session = repo.writable_session("main")
    virtual(plain).vz.to_icechunk(session.store)
    session.commit("all")
    found = open_cube(path, allow=str(plain.folder), mask_and_scale=False)
    np.testing.assert_array_equal(found.band_1.values, plain.stored.band_1.values)


@pytest.mark.parametrize("name", ["refs.json", "refs.parq"])
def test_our_own_references_open_where_they_lie_above_the_archive(here, name):
    assert_stored(open_cube(here.folder / name, mask_and_scale=False), here)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_stores(here, tmp_path, zarr_format, consolidated):
    path = tmp_path / "copy.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # consolidated metadata are no part of version 3 yet
        here.decoded.drop_encoding().chunk(y=100, x=64).to_zarr(
            path, zarr_format=zarr_format, consolidated=consolidated
        )
    found = open_cube(path)
    xr.testing.assert_equal(found.load(), here.decoded)
    chunked = open_cube(path, chunks="auto")
    assert chunked.red.chunks == ((2,), (100, 100, 56), (64, 64, 64, 64))
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_equal(chunked.compute(), here.decoded)


def test_sharded_stores_read_parts_of_their_objects(tmp_path):
    values = np.arange(64 * 64, dtype="i4").reshape(64, 64)
    root = zarr.create_group(tmp_path / "sharded.zarr")
    root.create_array("a", data=values, chunks=(8, 8), shards=(32, 32), dimension_names=("y", "x"))
    found = open_cube(tmp_path / "sharded.zarr").a
    np.testing.assert_array_equal(found[5:20, 30:41], values[5:20, 30:41])


@pytest.fixture
def repository(here, tmp_path):
    """An Icechunk repository with the cube's numbers, and the allowance that it needs."""

    def write(path, *, native):
        config = icechunk.RepositoryConfig.default()
        prefix = f"file://{here.folder}/"
        if not native:
            container = icechunk.VirtualChunkContainer(prefix, icechunk.local_filesystem_store(str(here.folder)))
            config.set_virtual_chunk_container(container)
        storage = icechunk.local_filesystem_storage(str(path))
        repo = icechunk.Repository.create(storage, config)
        session = repo.writable_session("main")
        if native:
            here.decoded.drop_encoding().to_zarr(session.store, zarr_format=3, consolidated=False)
        else:
            root = zarr.create_group(session.store)
            root.create_array("time", data=np.arange(2), dimension_names=["time"])
            root.create_array(
                "raw", shape=(2, 100), chunks=(1, 100), dtype="u1", compressors=None, dimension_names=["time", "i"]
            )
            for i, source in enumerate(sorted((here.folder / "archive").rglob("*red.tif"))):
                session.store.set_virtual_ref(f"raw/c/{i}/0", f"file://{source}", offset=0, length=100)
        session.commit("all")
        return path

    return write


def test_icechunk_repositories(here, repository, tmp_path):
    path = repository(tmp_path / "a.icechunk", native=True)
    xr.testing.assert_equal(open_cube(path).load(), here.decoded)
    assert find_foreign(str(tmp_path / "a.icechunk")).kind == "icechunk"
    moved = tmp_path / "of any name"
    path.rename(moved)
    xr.testing.assert_equal(open_cube(moved).load(), here.decoded)


def test_virtual_chunks_of_icechunk_want_to_be_allowed(here, repository, tmp_path):
    path = repository(tmp_path / "virtual.icechunk", native=False)
    with pytest.raises(ReferencesError, match=r"points to file://.* and only what lies below .* is allowed"):
        open_cube(path)
    found = open_cube(path, allow=[here.folder.as_posix()]).raw.values
    for row, source in zip(found, sorted((here.folder / "archive").rglob("*red.tif")), strict=True):
        assert row.tobytes() == source.read_bytes()[:100]


def test_a_repository_is_opened_at_its_new_tip(here, repository, tmp_path):
    path = repository(tmp_path / "a.icechunk", native=True)
    foreign = find_foreign(str(path))
    before = find_version(foreign)
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    session = repo.writable_session("main")
    zarr.open_group(session.store)["red"].attrs["more"] = 1
    session.commit("more")
    assert find_version(foreign) != before
    assert open_cube(path).red.attrs["more"] == 1


# What is asked for.


def test_a_part_is_chosen_by_name_time_and_place(here):
    path = here.folder / "refs.json"
    west, south, east, north = 13.637, 48.736, 13.644, 48.741
    found = open_cube(path, "red", time="2024-04-24", bbox=(west, south, east, north), mask_and_scale=False)
    same = open_cube(
        here.manifest, "red", time="2024-04-24", lon=(west, east), lat=(south, north), mask_and_scale=False
    )
    assert set(found.data_vars) == {"red"}
    np.testing.assert_array_equal(found.red.values, same.red.values)
    np.testing.assert_array_equal(found.x.values, same.x.values)
    both = open_cube(path, ["red", "scl"], time=("2024-04-01", "2024-04-30"))
    assert (set(both.data_vars), both.sizes["time"]) == ({"red", "scl"}, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": "swir"}, r"bands='swir' were asked for; .*refs\.json has .*red"),
        ({"time": "2025"}, "time='2025' was asked for; .* has 2024-04-09 .* to 2024-04-24"),
        ({"time": "then"}, "time='then'"),
        ({"bbox": (0, 0, 1, 1)}, "lies outside"),
        ({"bbox": (0, 0, 1)}, "four numbers"),
        ({"crs": "EPSG:4326"}, "no archive of COGs and opens as it is: leave out crs="),
        ({"resolution": 20, "resampling": "average"}, "leave out resolution=, resampling="),
        ({"level": 1}, "leave out level="),
        ({"patch_url": str}, "leave out patch_url="),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(here, options, message):
    with pytest.raises(SelectionError, match=message):
        open_cube(here.folder / "refs.json", **options)


def test_a_store_without_a_place_has_no_box_and_without_time_no_date(tmp_path):
    zarr.create_group(tmp_path / "plain.zarr").create_array("a", data=np.zeros((4, 4)), dimension_names=("v", "w"))
    with pytest.raises(SelectionError, match="does not say where it lies"):
        open_cube(tmp_path / "plain.zarr", bbox=(0, 0, 1, 1))
    with pytest.raises(SelectionError, match="no coordinate called time"):
        open_cube(tmp_path / "plain.zarr", time="2024")


def test_datasets_pickle_to_where_they_came_from(here):
    found = open_cube(here.folder / "refs.json", "red", chunks="auto")
    assert len(pickle.dumps(found.red.data)) < 20_000
    again = pickle.loads(pickle.dumps(found))
    with dask.config.set(scheduler="synchronous"):
        np.testing.assert_array_equal(again.red.values, here.decoded.red.values)


# What is damaged.

NOTHING = {
    "blank": (" ", "no JSON"),
    "half": ('{"version": 1, "refs": {".zgroup": "{', "no JSON"),
    "of version 3": ({"version": 3, "refs": {".zgroup": "{}"}}, "version 3"),
    "made by a program": ({"version": 1, "refs": {".zgroup": "{}"}, "gen": [{"key": "a"}]}, "made by a program"),
    "a list": ({"version": 1, "refs": [".zgroup"]}, "maps no keys"),
    "of no arrays": ({"version": 1, "refs": {".zgroup": '{"zarr_format": 2}'}}, "has no arrays"),
    "of a damaged array": (
        {"version": 1, "refs": {".zgroup": '{"zarr_format": 2}', "a/.zarray": "{}"}},
        "has no arrays",
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_damaged_references_are_named(write_refs, name):
    document, message = NOTHING[name]
    path = write_refs(document)
    foreign = Foreign(url=str(path), kind="references")
    with pytest.raises(ReferencesError, match=message) as caught:
        open_foreign(foreign)
    assert str(path) in str(caught.value)


def test_json_of_another_kind_is_no_references(write_refs):
    assert find_foreign(str(write_refs({"type": "Feature", "stac_version": "1.0.0", "links": [], "refs": {}}))) is None
    assert find_foreign(str(write_refs({"a": 1}, "b.json"))) is None
    assert find_foreign("no such file.json") is None


def test_parquet_is_references_where_it_is_a_folder_of_them(plain, tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"PAR1")
    assert find_foreign(str(tmp_path / "items.parquet")) is None
    to_kerchunk(plain.manifest, tmp_path / "refs.parquet")
    with ObjectStore(tmp_path) as store:
        assert find_foreign(f"{store.url}/items.parquet") is None
        assert find_foreign(f"{store.url}/refs.parquet").kind == "references"


def test_a_vanished_target_is_an_error_and_never_a_hole(here, write_refs):
    refs = {
        key: ["file:///nowhere/at/all.tif", *value[1:]] if isinstance(value, list) else value
        for key, value in here.refs.items()
    }
    found = open_cube(write_refs({"version": 1, "refs": refs}), allow=["/nowhere"])
    with pytest.raises(ReadError, match=r"/nowhere/at/all\.tif"):
        found.red.load()


def test_an_entry_of_the_catalogue_opens_by_its_name(here, tmp_path, monkeypatch):
    entry = {
        "driver": "intake_xarray.xzarr.ZarrSource",
        "args": {
            "urlpath": "reference://",
            "storage_options": {"fo": "{{ CATALOG_DIR }}/refs.json", "remote_protocol": "file"},
        },
    }
    by_engine = {
        "driver": "intake_xarray.xzarr.ZarrSource",
        "args": {"urlpath": "{{ CATALOG_DIR }}/elsewhere/refs.json", "engine": "kerchunk"},
        "metadata": {"allow": [here.folder.as_posix()]},
    }
    ours = {"driver": "cube.intake.CubeSource", "args": {"urlpath": "{{ CATALOG_DIR }}/refs.json"}}
    catalog = {"sources": {"one": entry, "two": by_engine, "three": ours}}
    folder = here.folder
    (folder / "elsewhere").mkdir(exist_ok=True)
    (folder / "elsewhere" / "refs.json").write_text((folder / "refs.json").read_text())
    (folder / "catalog.yaml").write_text(json.dumps(catalog))
    monkeypatch.chdir(folder)
    for name in catalog["sources"]:
        assert_stored(open_cube(name, mask_and_scale=False), here)
    with pytest.raises(CatalogError, match=r"'one' in catalog\.yaml is a Zarr store or references"):
        open_named("one")


def test_tiles_of_one_file_that_lie_close_are_one_request(here, tmp_path):
    with ObjectStore(here.folder) as store:
        refs = {
            key: [value[0].replace(here.folder.as_posix(), store.url), *value[1:]] if isinstance(value, list) else value
            for key, value in here.refs.items()
        }
        (tmp_path / "refs.json").write_text(json.dumps({"version": 1, "refs": refs}))
        found = open_cube(tmp_path / "refs.json", "red", allow=[store.url], mask_and_scale=False)
        before = store.counts().requests
        with zarr.config.set({"async.concurrency": 64}):
            np.testing.assert_array_equal(found.red.values, here.stored.red.values)
        assert store.counts().requests - before == 2  # files, of 16 tiles each
