"""Archives on which other libraries go wrong without a word, and what each returns for them."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime

import kerchunk.combine
import kerchunk.tiff
import numpy as np
import pytest
import tifffile
import xarray as xr

from cube import build, open_cube
from cube.errors import SourceChangedError
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog

SHAPE = 96, 128
BLOCKS = {"blocksize": 32, "OVERVIEW_COUNT": 1}


def of_kerchunk(href):
    """Return Kerchunk's references of a COG, which call its full resolution "0"."""
    return kerchunk.tiff.tiff_to_zarr(href)


def of_tifffile(path):
    """Return tifffile's references of a COG, as Kerchunk's."""
    with tifffile.TiffFile(path) as file, file.series[0].aszarr() as store:
        target = path.with_suffix(".json")
        store.write_fsspec(target, url=path.parent.as_uri())
    return str(target)


def opened(references):
    return xr.open_dataset(references, engine="kerchunk")["0"]


# Files of one series whose numbers mean different things.

SCALINGS = {"20240101": (0.0001, 0.0), "20240201": (0.0001, -0.1), "20240301": (0.01, 0.0), "20240401": (0.00005, 0.2)}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Four files of the same stored numbers, 1 to 12288, and of four scales and offsets; with what they mean."""
    folder = tmp_path_factory.mktemp("series")
    stored = np.sort(unique_values(SHAPE, "uint16"), axis=None).reshape(SHAPE)
    for date, (scale, offset) in SCALINGS.items():
        write_cog(folder / f"{date}.tif", stored, scale=scale, offset=offset, nodata=0, **BLOCKS)
    return folder, np.array([stored * scale + offset for scale, offset in SCALINGS.values()])


def concatenated(folder):
    """Return Kerchunk's concatenation of the files of a folder, and what scale and offset it says of all."""
    several = kerchunk.combine.MultiZarrToZarr(
        [of_kerchunk(str(path)) for path in sorted(folder.glob("*.tif"))],
        coo_map={"time": "INDEX"},
        concat_dims=["time"],
        identical_dims=["Y", "X", "Y1", "X1"],
        remote_protocol="file",
    )
    ds = xr.open_dataset(several.translate(), engine="kerchunk")
    return ds["0"], float(ds.attrs["SCALE"]), float(ds.attrs["OFFSET"])


def test_files_of_different_scales_concatenated_by_kerchunk_are_wrong_by_up_to_122(series):
    folder, truth = series
    stored, scale, offset = concatenated(folder)
    assert (scale, offset) == (0.0001, 0)  # the first file's, for all
    found = stored.values.astype("float64") * scale + offset
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-12)
    errors = np.abs(found - truth).max(axis=(1, 2))
    np.testing.assert_allclose(errors[1], 0.1, rtol=1e-9)  # as Sentinel-2 was in 2022
    np.testing.assert_allclose(errors[2], 12288 * 0.0099, rtol=1e-9)
    np.testing.assert_allclose(errors[3], 12288 * 0.00005 - 0.2, rtol=1e-9)
    assert errors.max() == pytest.approx(121.65, abs=0.01)


@pytest.mark.parametrize("chunks", [None, {"time": 2, "y": 50, "x": 40}])
def test_files_of_different_scales_are_one_cube_of_right_values(series, chunks):
    folder, truth = series
    ds = open_cube(folder, chunks=chunks)
    (band,) = ds.data_vars
    assert [str(stamp)[:10].replace("-", "") for stamp in ds.time.values] == list(SCALINGS)
    assert ds[band].dtype == "float32"
    np.testing.assert_array_equal(ds[band].values, truth.astype("float32"))


# Zeros that are measurements.


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """A COG without a nodata value, half of whose pixels are 0, and its numbers."""
    values = unique_values(SHAPE, "uint16")
    values[values % 2 == 0] = 0
    return write_cog(tmp_path_factory.mktemp("counts") / "counts.tif", values, **BLOCKS), values


@pytest.mark.parametrize("peer", [lambda path: of_kerchunk(str(path)), of_tifffile], ids=["kerchunk", "tifffile"])
def test_zeros_without_nodata_are_nan_in_references_of_kerchunk_and_tifffile(counts, peer):
    path, values = counts
    found = opened(peer(path))
    assert found.dtype == "float32"
    np.testing.assert_array_equal(np.isnan(found.values), values == 0)
    assert np.isnan(found.values).mean() == 0.5


def test_zeros_without_nodata_are_zeros(counts, tmp_path):
    path, values = counts
    band = open_cube(build(path, to=tmp_path / "counts.cube")).band_1
    assert band.dtype == "uint16"
    np.testing.assert_array_equal(band.values, values)


# Files that were processed again, and replaced where they lay.


def write_version(path, number, seed=0):
    """Write an uncompressed file, whose header grows with its version as that of a reprocessed file does."""
    values = unique_values(SHAPE, "uint16", seed=seed)
    write_cog(path, values, descriptions=["processed again " * number], nodata=0, compress="NONE", **BLOCKS)
    return values


def set_time(path, *, minutes):
    """Say that a file was written that many minutes after a fixed moment."""
    moment = datetime(2024, 5, 1, 12, minutes, tzinfo=UTC).timestamp()
    os.utime(path, (moment, moment))


@pytest.fixture
def served(tmp_path):
    """A file of an object store, its URL and its numbers."""
    path = tmp_path / "store" / "scene.tif"
    values = write_version(path, 0)
    set_time(path, minutes=0)
    with ObjectStore(path.parent) as store:
        yield path, f"{store.url}/scene.tif", values


def test_a_replaced_file_is_garbage_in_references_of_kerchunk(served):
    path, url, before = served
    references = of_kerchunk(url)
    np.testing.assert_array_equal(opened(references).values, before)
    after = write_version(path, 1, seed=1)
    found = opened(references).values
    for values in (before, after):
        assert np.count_nonzero(found == values) < 0.01 * values.size


def test_a_replaced_file_is_an_error_that_names_it(served, tmp_path):
    path, url, before = served
    ds = open_cube(build(url, to=tmp_path / "scene.cube"), mask_and_scale=False)
    np.testing.assert_array_equal(ds.band_1.values, before)
    write_version(path, 1)
    words = r"scene\.tif: .*changed since it was scanned.*run `cube refresh` on the cube"
    with pytest.raises(SourceChangedError, match=words) as caught:
        ds.band_1.isel(y=3).compute()
    assert caught.value.href == url


def test_a_replaced_local_file_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "scene.tif"
    before = write_version(path, 0)
    set_time(path, minutes=0)
    ds = open_cube(build(path, to=tmp_path / "scene.cube"), mask_and_scale=False)
    np.testing.assert_array_equal(ds.band_1.values, before)
    write_version(path, 1)
    with pytest.raises(
        SourceChangedError, match=r"scene\.tif: changed since it was scanned \(.*`cube refresh`"
    ) as caught:
        ds.band_1.isel(y=3).compute()
    assert caught.value.href == path.as_posix()


def test_pixels_changed_in_place_are_noticed_though_every_byte_lies_where_it_lay(tmp_path):
    path = tmp_path / "scene.tif"
    write_version(path, 0)
    set_time(path, minutes=0)
    ds = open_cube(build(path, to=tmp_path / "scene.cube"))
    size = path.stat().st_size
    write_version(path, 0, seed=5)
    assert path.stat().st_size == size
    set_time(path, minutes=1)
    with pytest.raises(SourceChangedError, match=r"scene\.tif: changed since it was scanned"):
        ds.band_1.values  # noqa: B018 - the access reads


def test_a_copied_folder_reads_though_its_files_are_newer(tmp_path):
    folder = tmp_path / "archive"
    truth = {}
    for number, date in enumerate(("20240101", "20240201")):
        truth[date] = unique_values(SHAPE, "uint16", seed=number)
        set_time(write_cog(folder / f"{date}.tif", truth[date], nodata=0, **BLOCKS), minutes=0)
    build(folder, to=folder / "archive.cube")
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    for path in copy.glob("*.tif"):
        set_time(path, minutes=30)
    shutil.rmtree(folder)
    ds = open_cube(copy / "archive.cube", mask_and_scale=False)
    (band,) = ds.data_vars
    np.testing.assert_array_equal(ds[band].values, list(truth.values()))
