"""Zarr stores, references and Icechunk repositories of a catalogue are served as cubes are."""

from __future__ import annotations

import json
import logging
import warnings

import icechunk
import intake
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.errors import ZarrUserWarning

import cube
from cube.catalog import CUBE_DRIVER, ZARR_DRIVER
from cube.errors import CatalogError
from cube.references import to_kerchunk
from cube.testing import ObjectStore, unique_values, write_cog
from server.app import create_app
from server.run import serving
from tests.server.conftest import ask

SHAPE = (150, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One cube as four things that others write, and a catalogue of them and of some that cannot be served."""
    root = tmp_path_factory.mktemp("foreign")
    for day in ("2024-01-05", "2024-03-01"):
        values = unique_values(SHAPE, "uint16", seed=int(day[-1]))
        write_cog(root / "in" / f"{day}_red.tif", values, nodata=0, scale=0.5, offset=-10, blocksize=64)
        write_cog(root / "in" / f"{day}_height.tif", values.astype("f4") / 3, nodata=np.nan, blocksize=64)
    manifest = cube.build(root / "in", pattern="{time:%Y-%m-%d}_{band}.tif", name="a", to=root / "a.cube")
    to_kerchunk(manifest, root / "refs.json")
    to_kerchunk(manifest, root / "refs.parq")
    dataset = cube.open_cube(manifest, mask_and_scale=False).load()
    plain = dataset.drop_encoding().assign_coords(
        tile=("time", np.array(["33UVP", "32U"])), is_good=("time", [True, False])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of consolidated metadata, and texts of a fixed length
        plain.chunk(y=64, x=100).to_zarr(root / "v2.zarr", zarr_format=2)
        plain.chunk(y=64, x=100).to_zarr(root / "v3.zarr", zarr_format=3)
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(root / "a.icechunk")))
    session = repo.writable_session("main")
    plain.drop_vars("tile").to_zarr(session.store, zarr_format=3, consolidated=False)
    session.commit("all")
    (root / "secret").write_bytes(b"1234")
    array = {
        "zarr_format": 2,
        "shape": [4],
        "chunks": [4],
        "dtype": "|u1",
        "compressor": None,
        "filters": None,
        "fill_value": None,
        "order": "C",
    }
    bad = {".zgroup": '{"zarr_format": 2}', "a/.zarray": json.dumps(array), "a/0": [str(root / "secret"), 0, 4]}
    (root / "deep").mkdir()
    (root / "deep" / "bad.json").write_text(json.dumps({"version": 1, "refs": bad}))
    here = "{{ CATALOG_DIR }}"
    sources = {
        "json": {"driver": ZARR_DRIVER, "args": {"urlpath": f"{here}/refs.json", "engine": "kerchunk", "chunks": {}}},
        "parquet": {"driver": CUBE_DRIVER, "args": {"urlpath": f"{here}/refs.parq"}},
        "v2": {"driver": ZARR_DRIVER, "args": {"urlpath": f"{here}/v2.zarr"}, "metadata": {"allow": ["/not/shown"]}},
        "v3": {"driver": "zarr", "args": {"urlpath": f"{here}/v3.zarr"}},
        "ice": {"driver": CUBE_DRIVER, "args": {"urlpath": f"{here}/a.icechunk"}},
        "bad": {"driver": CUBE_DRIVER, "args": {"urlpath": f"{here}/deep/bad.json"}},
        "nowhere": {"driver": ZARR_DRIVER, "args": {"urlpath": [f"{here}/a.zarr", f"{here}/b.zarr"]}},
        "gone": {"driver": ZARR_DRIVER, "args": {"urlpath": f"{here}/gone.zarr"}},
    }
    (root / "catalog.yaml").write_text(json.dumps({"sources": sources}))
    return root


@pytest.fixture(scope="module")
def dataset(folder):
    return cube.open_cube(folder / "a.cube", mask_and_scale=False).load()


@pytest.fixture(scope="module")
def url(folder):
    with serving(create_app(folder / "catalog.yaml")) as address:
        yield address


@pytest.mark.parametrize("kind", ["datasets/{}.zarr", "datasets/{}/v2.zarr"])
@pytest.mark.parametrize("name", ["json", "parquet", "v2", "v3", "ice"])
def test_each_is_opened_over_http(url, dataset, name, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = xr.open_zarr(
            f"{url}/{kind.format(name)}", chunks=None, mask_and_scale=False, decode_coords="all"
        ).load()
    for band in ("red", "height"):
        assert found[band].dtype == dataset[band].dtype
        np.testing.assert_array_equal(found[band].values, dataset[band].values)
        for said in ("scale_factor", "add_offset", "_FillValue"):
            known = dataset[band].attrs.get(said)
            assert known is None or found[band].attrs[said] == pytest.approx(known, nan_ok=True)
    for coordinate in ("time", "y", "x"):
        np.testing.assert_array_equal(found[coordinate].values, dataset[coordinate].values)
    assert found.spatial_ref.attrs["crs_wkt"] == dataset.spatial_ref.attrs["crs_wkt"]
    if name in ("v2", "v3"):
        assert found.tile.values.tolist() == ["33UVP", "32U"]
        assert found.is_good.values.tolist() == [True, False]


@pytest.mark.parametrize("name", ["json", "ice"])
def test_decoded_numbers_are_the_cube_s(url, folder, name):
    decoded = cube.open_cube(folder / "a.cube").load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = xr.open_zarr(f"{url}/datasets/{name}.zarr", chunks=None, decode_coords="all").load()
    for band in ("red", "height"):
        np.testing.assert_array_equal(found[band].values, decoded[band].values)


def test_they_stand_in_the_catalogue(url):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entries = intake.open_catalog(f"{url}/catalog.yaml")
        assert set(entries) == {"json", "parquet", "v2", "v3", "ice", "bad", "gone"}
        assert entries["json"].to_dask().red.shape == (2, *SHAPE)
    assert b"/not/shown" not in ask(url, "/catalog.yaml").body
    assert {"json", "ice"} <= set(json.loads(ask(url, "/datasets").body))


def test_chunks_have_the_store_s_own_shape_and_a_tag(url):
    document = json.loads(ask(url, "/datasets/v3.zarr/red/zarr.json").body)
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [2, 64, 100]
    first = ask(url, "/datasets/v3.zarr/red/c/0/2/1")
    assert first.status == 200
    assert ask(url, "/datasets/v3.zarr/red/c/0/2/1", If_None_Match=first.headers["etag"]).status == 304
    assert ask(url, "/datasets/v3.zarr/red/c/0/3/0").status == 404
    assert ask(url, "/datasets/v3.zarr/red/c/0/02/1").status == 404
    assert ask(url, "/datasets/v3/level/1.zarr/zarr.json").status == 404


def test_what_points_elsewhere_or_is_gone_is_refused(url):
    for name, words in (("bad", b"is allowed"), ("gone", b"gone.zarr")):
        answer = ask(url, f"/datasets/{name}.zarr/zarr.json")
        assert answer.status >= 400
        assert words in answer.body
        assert b"1234" not in answer.body


def test_an_entry_of_two_stores_is_not_served(folder, caplog):
    with caplog.at_level(logging.WARNING):
        create_app(folder / "catalog.yaml")
    assert "'nowhere' names no urlpath that is one path or URL" in caplog.text


def test_a_store_that_is_written_anew_is_served_anew(tmp_path):
    def write(value):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ZarrUserWarning)
            xr.Dataset({"a": ("i", np.full(4, value))}, attrs={"made": value}).to_zarr(
                tmp_path / "a.zarr", mode="w", zarr_format=3
            )

    write(1)
    (tmp_path / "catalog.yaml").write_text(
        json.dumps({"sources": {"a": {"driver": ZARR_DRIVER, "args": {"urlpath": str(tmp_path / "a.zarr")}}}})
    )
    from server.settings import ServerSettings

    with serving(create_app(tmp_path / "catalog.yaml", settings=ServerSettings(refresh_s=0))) as url:
        assert zarr.open_group(f"{url}/datasets/a.zarr", mode="r")["a"][:].tolist() == [1] * 4
        write(2)
        assert zarr.open_group(f"{url}/datasets/a.zarr", mode="r")["a"][:].tolist() == [2] * 4


def test_a_catalogue_from_a_network_names_no_file_of_this_machine(folder, tmp_path):
    source = {"driver": CUBE_DRIVER, "args": {"urlpath": str(folder / "refs.json")}}
    (tmp_path / "catalog.yaml").write_text(json.dumps({"sources": {"a": source}}))
    with ObjectStore(tmp_path) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry = intake.open_catalog(f"{store.url}/catalog.yaml")["a"]
        with pytest.raises(CatalogError, match="a file of this machine"):
            entry.to_dask()
