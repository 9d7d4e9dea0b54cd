"""Views: equal to the archive's truth and to plain xarray algebra, and a block is one read of just its bands."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr

import cube
from cube.algebra.masks import SCL_CLEAR, parse_mask
from cube.engine.graph import read_bands
from cube.errors import SelectionError, SourceNotFoundError
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.spec import Band
from cube.testing import Archive, write_archive
from cube.views import View, compute_block, open_view

DATES = ("2024-04-09", "2024-04-24", "2024-05-09", "2024-07-13")
SIZE = 192


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), size=SIZE, tile=64, dates=DATES, seed=3)


@pytest.fixture(scope="module")
def manifest(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return cube.build(archive.items, name="s2", to=tmp_path_factory.mktemp("built") / "s2.cube")


def compute(array: xr.DataArray) -> np.ndarray:
    assert array.dtype == "float32"
    values: np.ndarray = array.data.compute(scheduler="synchronous")
    assert values.dtype == "float32"
    assert values.shape == array.shape
    return values


def assert_rounded(found: np.ndarray, expected: Any) -> None:
    """Two last bits of float32 may differ: quotients are float32, of which an even median is the mean of two."""
    np.testing.assert_allclose(found, np.asarray(expected), rtol=2.4e-7)


def plain_ndvi(manifest: Manifest, **options: Any) -> xr.DataArray:
    """NDVI of the clear pixels as anybody would write it."""
    ds = cube.open_cube(manifest, chunks="auto", **options)
    return ((ds.nir - ds.red) / (ds.nir + ds.red)).where(ds.scl.isin(SCL_CLEAR))


def test_the_median_of_all_dates_is_the_truth(archive: Archive, manifest: Manifest) -> None:
    view = open_view(manifest, "ndvi", mask="scl", composite="median")
    assert view.dims == ("y", "x")
    _, (truth,) = archive.truth_ndvi_composite()
    assert_rounded(compute(view), truth)
    assert 0 < np.isnan(truth).sum() < truth.size / 2  # or the mask would not be tested


def test_medians_of_months_are_the_truth_and_empty_months_are_nan(archive: Archive, manifest: Manifest) -> None:
    view = open_view(manifest, "ndvi", mask="scl", composite="median", freq="MS")
    labels, truth = archive.truth_ndvi_composite("MS")
    np.testing.assert_array_equal(view["time"].values, labels)
    values = compute(view)
    assert_rounded(values, truth)
    assert np.isnan(values[2]).all()  # June


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning", "ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.parametrize("name", ["median", "mean", "max", "min"])
@pytest.mark.parametrize("chunks", ["auto", {"y": 100, "x": 64}])
def test_a_composite_equals_plain_xarray(manifest: Manifest, name: str, chunks: Any) -> None:
    found = compute(open_view(manifest, "ndvi", mask="scl", composite=name, chunks=chunks))
    expected = (
        getattr(plain_ndvi(manifest).chunk(time=-1), name)("time").astype("float32").compute(scheduler="synchronous")
    )
    assert_rounded(found, expected)


def test_without_a_composite_each_date_is_the_index(archive: Archive, manifest: Manifest) -> None:
    view = open_view(manifest, "NDVI", chunks={"time": 2})
    assert view.dims == ("time", "y", "x")
    assert view.chunks is not None
    assert view.chunks[0] == (2, 2)
    values = compute(view)
    ds = cube.open_cube(manifest, chunks="auto")
    assert_rounded(values, (ds.nir - ds.red) / (ds.nir + ds.red))
    for date, found in zip(DATES, values, strict=True):
        red, nir = (archive.expected(date, band).astype("float64") for band in ("red", "nir"))
        truth = np.where((red > 0) & (nir > 0), (nir - red) / (nir + red - 2000), np.nan)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1.2e-7)


def test_another_index_takes_its_own_bands(manifest: Manifest) -> None:
    ds = cube.open_cube(manifest)
    assert_rounded(compute(open_view(manifest, "ndwi")), (ds.green - ds.nir) / (ds.green + ds.nir))


@pytest.mark.parametrize("level", [0, 1])
def test_a_block_is_one_read_of_just_its_bands(manifest: Manifest, level: int) -> None:
    view = open_view(manifest, "ndvi", mask="scl", composite="median", chunks={"y": 64, "x": -1}, level=level)
    graph = view.data.__dask_optimize__(view.data.__dask_graph__(), view.data.__dask_keys__())
    reads = [task for task in dict(graph).values() if getattr(task, "func", None) is read_bands]
    blocks = {0: 3, 1: 2}[level]
    assert view.data.npartitions == len(reads) == blocks
    assert {task.args[1] for task in reads} == {("nir", "red", "scl")}
    with trace() as asked:
        compute(view)
    names = [Path(request.href).stem for request in asked.records]
    assert set(names) == {f"T33UVP_{date.replace('-', '')}_{band}" for date in DATES for band in ("nir", "red", "scl")}
    assert len(names) == blocks * 3 * len(DATES)  # one request a block, date and band


def test_opening_a_view_asks_for_nothing(archive: Archive, tmp_path: Path) -> None:
    fresh = cube.build(archive.items, to=tmp_path / "fresh.cube")
    with trace() as asked:
        open_view(fresh, "ndvi", mask="scl", composite="median")
    assert [request for request in asked.records if request.href.endswith(".tif")] == []


def test_the_result_has_the_cubes_grid_and_says_what_it_is(manifest: Manifest) -> None:
    view = open_view(manifest, "ndvi", composite="max", level=1)
    ds = cube.open_cube(manifest, level=1)
    assert view.name == "ndvi"
    assert view.attrs["long_name"] == "max of normalized difference vegetation index"
    assert view.attrs["units"] == "1"
    assert set(view.coords) == {"y", "x", "spatial_ref"}
    for name in ("y", "x", "spatial_ref"):
        xr.testing.assert_identical(view[name], ds[name])
    assert view.rio.crs.to_epsg() == 32633


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_a_box_and_a_time_are_a_part_of_the_whole(manifest: Manifest) -> None:
    bbox = (13.64, 48.735, 13.65, 48.745)
    part = open_view(manifest, "ndvi", mask="scl", composite="median", bbox=bbox, time=("2024-04", "2024-05"))
    expected = plain_ndvi(manifest, bbox=bbox, time=("2024-04", "2024-05")).median("time").astype("float32")
    assert 1 < part.sizes["x"] < SIZE
    assert 1 < part.sizes["y"] < SIZE
    xr.testing.assert_allclose(
        part.compute(scheduler="synchronous"), expected.compute(scheduler="synchronous"), rtol=2.4e-7, atol=0
    )
    one = open_view(manifest, "ndvi", time="2024-05-09")
    np.testing.assert_array_equal(compute(one), compute(open_view(manifest, "ndvi"))[2:3])


def test_a_mask_may_be_named_by_the_assets_key_or_its_values(manifest: Manifest) -> None:
    known = compute(open_view(manifest, "ndvi", mask="scl", composite="median"))
    kept = ",".join(map(str, SCL_CLEAR))
    for mask in ("SCL", f"SCL={kept}", f"scl = {kept}"):
        np.testing.assert_array_equal(compute(open_view(manifest, "ndvi", mask=mask, composite="median")), known)
    # A mask may use a band that the index uses too, here by its alias.
    one_of_two = compute(open_view(manifest, "ndvi", mask="B08=1500"))
    nir = cube.open_cube(manifest, "nir", mask_and_scale=False).nir.values
    np.testing.assert_array_equal(np.isfinite(one_of_two), (nir == 1500) & np.isfinite(one_of_two))


def test_a_band_of_the_index_may_be_known_by_an_alias() -> None:
    nir, red = np.array([[3000, 0, 2000]], "uint16"), np.array([[1000, 1000, 1000]], "uint16")
    bands = (
        Band(name="b8", dtype="uint16", nodata=0, aliases=("B08", "nir"), scale=0.5),
        Band(name="b4", dtype="uint16", nodata=0, aliases=("red",), scale=0.5),
    )
    found = compute_block(nir, red, view=View(index="ndvi"), bands=bands, periods=None)
    np.testing.assert_array_equal(found, np.array([[0.5, np.nan, 1 / 3]], "float32"))


def test_a_cube_without_time(archive: Archive, tmp_path: Path) -> None:
    files = [archive.path("2024-04-09", band) for band in ("red", "nir", "scl")]
    layers = cube.build(files, to=tmp_path / "layers.cube", pattern="T33UVP_20240409_{band}.tif")
    view = open_view(layers, "ndvi", mask="scl")
    assert view.dims == ("y", "x")
    assert "time" not in view.coords
    dated = open_view(cube.build(archive.items, to=tmp_path / "dated.cube"), "ndvi", mask="scl")
    np.testing.assert_array_equal(compute(view), compute(dated)[0])
    with pytest.raises(SelectionError, match=r"composite='median': 'layers' has no time to composite over"):
        open_view(layers, "ndvi", composite="median")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": "evi"}, "index 'evi' was asked for; there are nbr, ndvi, ndwi"),
        ({"index": "nbr"}, "band 'swir22' was asked for; 's2' has blue, green, red, nir, scl"),
        ({"composite": "mode"}, "composite 'mode' was asked for; there are median, mean, max, min"),
        ({"freq": "MS"}, "freq='MS' needs a composite"),
        ({"composite": "median", "freq": "months"}, "freq='months' is no period .*; use MS, QS, YS or such as 10D"),
        ({"composite": "median", "freq": "0D"}, "freq='0D' is no period"),
        ({"composite": "median", "chunks": {"time": 2}}, "a composite needs all dates in a block"),
        ({"mask": "qa=1"}, "band 'qa' was asked for"),
        ({"mask": "qa"}, "say which values of 'qa' are clear"),
        ({"chunks": {"z": 2}}, "the cube's dimensions are time, y, x"),
        ({"level": 7}, "level 7 was asked for; 's2' has levels 0 to 2"),
        ({"time": "2023"}, "'s2' has no date then; its dates run from 2024-04-09 to 2024-07-13"),
        ({"bbox": (0, 0, 1, 1)}, "lies outside of the cube"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    manifest: Manifest, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        open_view(manifest, **{"index": "ndvi"} | arguments)


def test_the_same_view_has_the_same_name_and_another_has_another(manifest: Manifest) -> None:
    def key(**options: Any) -> str:
        return str(open_view(manifest, "ndvi", **options).data.name)

    options: list[dict[str, Any]] = [
        {},
        {"mask": "scl"},
        {"mask": "scl=4"},
        {"composite": "median"},
        {"composite": "mean"},
        {"composite": "median", "freq": "MS"},
        {"composite": "median", "time": "2024-04"},
        {"level": 1},
        {"chunks": {"x": 64}},
    ]
    assert [key(**each) for each in options] == [key(**each) for each in options]
    assert len({key(**each) for each in options}) == len(options)


def test_a_block_of_more_rows_than_a_strip_is_whole() -> None:
    # 3 dates x 2000 columns x 8 bytes: some 20 rows a strip.
    rng = np.random.default_rng(0)
    nir, red = rng.integers(0, 10_000, (2, 3, 50, 2000), "uint16")
    scl = rng.integers(0, 12, (3, 50, 2000)).astype("uint8")
    bands = (
        Band(name="nir", dtype="uint16", nodata=0, scale=1e-4, offset=-0.1),
        Band(name="red", dtype="uint16", nodata=None, scale=1e-4, offset=-0.1),
        Band(name="scl", dtype="uint8"),
    )
    view = View(index="ndvi", mask=parse_mask("scl"), composite="max")
    found = compute_block(nir, red, scl, view=view, bands=bands, periods=((0, 2), (), (1,)))
    a, b = nir * 1e-4 - 0.1, red * 1e-4 - 0.1
    clear = np.isin(scl, SCL_CLEAR) & (nir != 0) & (a + b != 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(clear, (a - b) / (a + b), np.nan)
    expected = [np.fmax(values[0], values[2]), np.full((50, 2000), np.nan), values[1]]
    np.testing.assert_array_equal(found, np.array(expected, "float32"))


def test_a_view_travels_to_another_process(manifest: Manifest) -> None:
    view = open_view(manifest, "ndvi", mask="scl", composite="median")
    again = pickle.loads(pickle.dumps(view))
    assert again.data.name == view.data.name
    np.testing.assert_array_equal(compute(again), compute(view))


@pytest.mark.parametrize("options", [{}, {"composite": "median"}, {"composite": "mean", "freq": "MS"}])
@pytest.mark.parametrize(
    "index",
    [
        {},
        {"y": slice(10, 100), "x": slice(70, 71)},
        {"y": slice(None, None, -3), "x": slice(150, 20, -1)},
        {"y": 5, "x": slice(3, None, 7)},
        {"y": -1, "x": -1},
        {"y": slice(5, 5)},
        {"x": [3, 100, 7]},
    ],
)
def test_without_dask_a_part_is_what_it_is_of_the_whole(manifest: Manifest, options: Any, index: Any) -> None:
    whole = open_view(manifest, "ndvi", mask="scl", **options)
    view = open_view(manifest, "ndvi", mask="scl", chunks=None, **options)
    assert view.chunks is None
    assert view.dtype == "float32"
    xr.testing.assert_identical(view.isel(index).load(), whole.isel(index).compute())


def test_without_dask_a_period_reads_its_own_dates(manifest: Manifest) -> None:
    view = open_view(manifest, "ndvi", composite="median", freq="MS", chunks=None)
    with trace() as asked:
        april = view.isel(time=0).load()
    assert len({each.href for each in asked.records}) == 4  # two bands on two dates
    np.testing.assert_array_equal(april, open_view(manifest, "ndvi", composite="median", freq="MS")[0])


def test_without_dask_a_failure_names_its_source(archive: Archive, tmp_path: Path) -> None:
    manifest = cube.build(archive.items, name="s2", to=tmp_path / "s2.cube")
    view = open_view(manifest, "ndvi", composite="median", chunks=None)
    ds = cube.open_cube(manifest)
    href = ds.cube.sources.query("band == 'red'")["href"].iloc[0]
    hidden = Path(href).rename(tmp_path / "hidden.tif")
    try:
        with pytest.raises(SourceNotFoundError, match=Path(href).name):
            view.load()
    finally:
        hidden.rename(href)


# Of a dataset, by ds.cube.index()


@pytest.mark.parametrize("chunks", [None, "auto"])
@pytest.mark.parametrize("options", [{}, {"mask": "scl"}, {"mask": "scl", "composite": "mean", "freq": "MS"}])
@pytest.mark.parametrize("index", [{}, {"y": slice(10, 100), "x": slice(70, 71)}, {"y": 5, "time": slice(1, 3)}])
def test_an_index_of_a_window_is_the_window_of_the_index(
    manifest: Manifest, chunks: Any, options: Any, index: Any
) -> None:
    if "freq" in options:
        index = {dim: part for dim, part in index.items() if dim != "time"}
    found = cube.open_cube(manifest, chunks=chunks).isel(index).cube.index("NDVI", **options)
    assert (found.chunks is None) == (chunks is None)
    expected = open_view(manifest, "ndvi", chunks=chunks, **options).isel(index)
    xr.testing.assert_equal(found.compute(), expected.compute())
    assert found.attrs == expected.attrs


@pytest.mark.parametrize("chunks", [None, {"y": 64, "x": -1}])
def test_an_index_of_a_dataset_keeps_its_blocks_dates_and_level(manifest: Manifest, chunks: Any) -> None:
    ds = cube.open_cube(manifest, ["B08", "B04"], chunks=chunks, level=1, time=("2024-04", "2024-05"))
    found = ds.cube.index("ndvi", composite="max")
    assert found.dims == ("y", "x")
    assert found.chunks == (None if chunks is None else ((64, 32), (96,)))
    plain = ((ds.B08 - ds.B04) / (ds.B08 + ds.B04)).max("time")
    assert_rounded(found.compute(), plain.compute())


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_dates_may_be_in_any_order(manifest: Manifest, chunks: Any) -> None:
    ds = cube.open_cube(manifest, chunks=chunks)
    turned = ds.isel(time=[3, 0, 1])
    np.testing.assert_array_equal(turned.cube.index("ndvi"), ds.cube.index("ndvi").isel(time=[3, 0, 1]))
    monthly = turned.cube.index("ndvi", composite="max", freq="MS")
    expected = ds.isel(time=[0, 1, 3]).cube.index("ndvi", composite="max", freq="MS")
    xr.testing.assert_equal(monthly.compute(), expected.compute())


def test_a_composite_of_one_date_has_no_time(manifest: Manifest) -> None:
    ds = cube.open_cube(manifest).isel(time=2)
    assert ds.cube.index("ndvi", composite="mean").dims == ("y", "x")
    np.testing.assert_array_equal(ds.cube.index("ndvi"), open_view(manifest, "ndvi").isel(time=2))


def test_an_index_on_dask_reads_its_bands_together(manifest: Manifest) -> None:
    ds = cube.open_cube(manifest, chunks="auto").isel(x=slice(0, 64), y=slice(0, 64))
    with trace() as asked:
        ds.cube.index("ndvi", composite="median").compute()
    assert len(asked.records) == 2 * len(DATES)  # of one tile each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.assign(nir=ds.nir * 2), "variable '(red|nir)' is loaded or computed"),
        (lambda ds: ds.isel(y=slice(0, 4), x=slice(0, 4)).load(), "'(red|nir)' is loaded or computed"),
        (lambda ds: ds.isel(y=slice(None, None, 2)), "along y this dataset is not 191 neighbours"),
        (lambda ds: ds.isel(x=slice(None, None, -1)), "along x this dataset is not 192 neighbours"),
        (lambda ds: ds.drop_vars("time").isel(time=slice(1, 3)), "along time this dataset is not 4 neighbours"),
    ],
)
@pytest.mark.parametrize("chunks", [None, "auto"])
def test_an_index_of_what_is_no_part_of_the_cube_is_refused(
    manifest: Manifest, chunks: Any, change: Any, message: str
) -> None:
    with pytest.raises(SelectionError, match=message):
        change(cube.open_cube(manifest, chunks=chunks)).cube.index("ndvi")


@pytest.mark.parametrize("chunks", [None, "auto"])
def test_an_index_says_what_is_missing_in_it(archive: Archive, tmp_path: Path, chunks: Any) -> None:
    manifest = cube.build(archive.items, name="s2", to=tmp_path / "s2.cube")
    whole = cube.open_cube(manifest).cube.index("ndvi").compute()
    href = archive.path(DATES[1], "red")
    hidden = href.rename(tmp_path / "hidden.tif")
    try:
        ds = cube.open_cube(manifest, chunks=chunks, fail_on_error=False)
        found = ds.cube.index("ndvi").cube.compute()
    finally:
        hidden.rename(href)
    (missing,) = found.attrs.pop("missing_sources")
    assert missing.startswith(f"{href.as_posix()}: ")
    assert found.isel(time=1).isnull().all()
    xr.testing.assert_identical(found.drop_isel(time=1), whole.drop_isel(time=1))
