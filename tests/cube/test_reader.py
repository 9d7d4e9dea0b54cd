from __future__ import annotations

import asyncio
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from cube.archive.build import build
from cube.errors import ReadError, SelectionError, SourceChangedError, SourceNotFoundError
from cube.grid import Window
from cube.io.trace import trace
from cube.reader import read, read_block
from cube.spec import CubeSpec
from cube.testing.archive import unique_values, write_cog

HEIGHT, WIDTH = 170, 200
DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
PREDICTORS = {"none": (1,), "deflate": (1, 2, 3), "lzw": (1, 2, 3), "zstd": (1, 2, 3)}
LAYOUTS = {"one": (1, "band"), "pixel": (3, "pixel"), "band": (3, "band")}


def cases():
    """Name of a file -> how it is written: every codec, predictor, dtype, layout and byte order that GDAL writes."""
    for dtype, (codec, predictors), layout, order in itertools.product(
        DTYPES, PREDICTORS.items(), LAYOUTS, ("LITTLE", "BIG")
    ):
        for predictor in predictors:
            if predictor == 3 and not dtype.startswith("float"):
                continue
            options = {"ENDIANNESS": order}
            if codec != "none":
                options |= {"predictor": predictor}
            yield f"{dtype}_{codec}{predictor}_{layout}_{order}", (dtype, codec, layout, options)
    for codec, layout, order in itertools.product(PREDICTORS, LAYOUTS, ("LITTLE", "BIG")):
        big = {"ENDIANNESS": order, "BIGTIFF": "YES"}
        yield f"big_{codec}_{layout}_{order}", ("uint16", codec, layout, big)
        yield f"oblong_{codec}_{layout}_{order}", ("int16", codec, layout, {**big, "blockxsize": 112, "blockysize": 16})


CASES = dict(cases())
SOME = 5
"""Of this many cases in a row one is not slow, so that any two options of a file meet, and predictors every dtype."""


def values_of(shape, dtype, seed):
    """Return numbers over the whole range of a dtype, whose differences overflow."""
    if np.dtype(dtype).kind == "f":
        return unique_values(shape, dtype, seed)
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def write(path, array, codec, layout, options):
    settings = {"blockxsize": 64, "blockysize": 64, "interleave": LAYOUTS[layout][1], "compress": codec} | options
    if codec != "none":
        settings.setdefault("predictor", 1)
    return write_cog(path, array, driver="GTiff", **settings)


def spec_of(manifest, level=0):
    return CubeSpec(manifest=manifest.url, version=manifest.version, level=level)


def window(top, bottom, left, right):
    return Window(top=top, bottom=bottom, left=left, right=right)


def whole(manifest, level=0):
    height, width = manifest.grid_at(level).shape
    return window(0, height, 0, width)


def windows(seed, height=HEIGHT, width=WIDTH, count=4):
    """Random windows, and one pixel in the last, padded tile."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        top, bottom = np.sort(rng.choice(height + 1, 2, replace=False)).tolist()
        left, right = np.sort(rng.choice(width + 1, 2, replace=False)).tolist()
        yield window(top, bottom, left, right)
    yield window(height - 1, height, width - 1, width)


@pytest.fixture(scope="module")
def matrix(selected, tmp_path_factory):
    """One cube of the cases that are tested, each file a band (or three), and the files' paths by case."""
    folder = tmp_path_factory.mktemp("matrix")
    paths = {}
    for seed, name in enumerate(selected("name")):
        dtype, codec, layout, options = CASES[name]
        array = values_of((LAYOUTS[layout][0], HEIGHT, WIDTH), dtype, seed)
        if dtype.startswith("float"):
            array[:, 5, 7], array[:, 90, 3], array[:, 169, 199] = np.nan, -np.inf, -0.0
        paths[name] = write(folder / f"{name}.tif", array, codec, layout, options)
    return build(folder, pattern="{band}.tif"), paths


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if i % SOME else []) for i, name in enumerate(CASES)]
)
def test_matrix_equals_rasterio(matrix, name):
    manifest, paths = matrix
    with rasterio.open(paths[name]) as oracle:
        expected = oracle.read()
        assert len(expected) == LAYOUTS[CASES[name][2]][0]
    bands = [name] if len(expected) == 1 else [f"{name}_band_{i}" for i in (1, 2, 3)]
    for each in (whole(manifest), *windows(len(name), count=2)):
        found = read_block(spec_of(manifest), bands, (0,), each)
        assert list(found) == bands
        for band, values in zip(bands, expected, strict=True):
            assert found[band].dtype == values.dtype
            assert found[band].shape == (1, *each.shape)
            wanted = values[each.top : each.bottom, each.left : each.right]
            # The bits, not the numbers: NaN and -0.0 included.
            assert found[band][0].tobytes() == wanted.tobytes(), (band, each)


@pytest.mark.parametrize("codec", PREDICTORS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", None), ("uint16", 0), ("int16", -7), ("float32", np.nan)])
def test_sparse_tiles_equal_rasterio(tmp_path, codec, layout, dtype, nodata):
    samples = LAYOUTS[layout][0]
    array = np.full((samples, HEIGHT, WIDTH), 0 if nodata is None else nodata, dtype)
    array[:, 64:128, 64:128] = unique_values((samples, 64, 64), dtype)
    array[-1, 130:, 150:] = 3
    path = write(tmp_path / "a.tif", array, codec, layout, {"sparse_ok": True, "nodata": nodata})
    manifest = build(path)
    absent = manifest.image(0).lengths == 0
    assert absent.any()
    assert not absent.all()
    bands = [band.name for band in manifest.bands]
    for each in (whole(manifest), *windows(3)):
        found = read_block(spec_of(manifest), bands, (0,), each)
        with rasterio.open(path) as oracle:
            expected = oracle.read(window=((each.top, each.bottom), (each.left, each.right)))
        np.testing.assert_array_equal(np.concatenate([found[band] for band in bands]), expected)


def test_a_window_of_sparse_tiles_alone_costs_no_request(tmp_path):
    array = np.zeros((HEIGHT, WIDTH), "uint16")
    array[:64, :64] = 5
    manifest = build(write(tmp_path / "a.tif", array, "deflate", "one", {"sparse_ok": True}))
    with trace() as asked:
        found = read_block(spec_of(manifest), ["band_1"], (0,), window(64, 170, 0, 200))
    assert asked.requests == 0
    assert not found["band_1"].any()


def test_left_out_tiles_are_the_file_s_own_nodata_whatever_marks_holes(tmp_path):
    array = np.zeros((128, 128), "uint8")
    array[:64, :64] = 7
    path = write(tmp_path / "a.tif", array, "deflate", "one", {"sparse_ok": True})
    manifest = build(path, fill_value=99)
    assert manifest.band("band_1").nodata == 99
    found = read_block(spec_of(manifest), ["band_1"], (0,), whole(manifest))
    np.testing.assert_array_equal(found["band_1"][0], array)


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (170, 1), (63, 65), (64, 64), (65, 129)])
def test_images_of_any_size_equal_rasterio(tmp_path, shape):
    array = unique_values(shape, "uint16")
    manifest = build(write(tmp_path / "a.tif", array, "deflate", "one", {"predictor": 2}))
    found = read_block(spec_of(manifest), ["band_1"], (0,), whole(manifest))
    np.testing.assert_array_equal(found["band_1"][0], array)


@pytest.mark.parametrize("shape", [(171, 333), (1000, 130), (257, 513)])
def test_overviews_equal_rasterio(tmp_path, shape):
    path = write_cog(tmp_path / "a.tif", unique_values((2, *shape), "int32"), blocksize=64, OVERVIEW_COUNT=3)
    manifest = build(path)
    assert len(manifest.levels) == 4
    for level in range(1, 4):
        with rasterio.open(path, OVERVIEW_LEVEL=level - 1) as oracle:
            expected, height, width = oracle.read(), oracle.height, oracle.width
        assert manifest.grid_at(level).shape == (height, width)
        for each in (whole(manifest, level), *windows(level, height, width)):
            found = read_block(spec_of(manifest, level), ["band_1", "band_2"], (0,), each)
            wanted = expected[:, each.top : each.bottom, each.left : each.right]
            np.testing.assert_array_equal(np.concatenate(list(found.values())), wanted)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A cube of three dates, two bands and two tiles side by side; one date has no nir, one no right-hand tile."""
    folder = tmp_path_factory.mktemp("series")
    arrays = {}
    for seed, (date, band, tile) in enumerate(itertools.product(("0101", "0201", "0301"), ("red", "nir"), (0, 1))):
        if (date, band) == ("0201", "nir") or (date, tile) == ("0301", 1):
            continue
        arrays[date, band, tile] = unique_values((100, 120), "uint16", seed)
        write_cog(
            folder / f"t{tile}_2024{date}_{band}.tif",
            arrays[date, band, tile],
            transform=from_origin(500000 + tile * 1200, 5000000, 10, 10),
            driver="GTiff",
            nodata=0,
            blockxsize=64,
            blockysize=64,
        )
    truth = {band: np.zeros((3, 100, 240), "uint16") for band in ("red", "nir")}
    for (date, band, tile), array in arrays.items():
        truth[band][["0101", "0201", "0301"].index(date), :, tile * 120 : tile * 120 + 120] = array
    return build(folder), truth


@pytest.mark.parametrize("times", [(0, 1, 2), (2, 0), (1,), (1, 1, 2, 1), (0, 2, 0)])
@pytest.mark.parametrize("bands", [["red"], ["nir"], ["nir", "red"]])
def test_dates_come_in_the_order_asked_and_holes_are_nodata(series, times, bands):
    manifest, truth = series
    found = read_block(spec_of(manifest), bands, times, window(30, 90, 100, 200))
    assert list(found) == bands
    for band in bands:
        np.testing.assert_array_equal(found[band], truth[band][list(times), 30:90, 100:200])


def test_no_dates_and_no_bands_are_empty_answers(series):
    manifest, _ = series
    assert read_block(spec_of(manifest), ["red"], (), whole(manifest))["red"].shape == (0, 100, 240)
    assert read_block(spec_of(manifest), [], (0,), whole(manifest)) == {}


def test_a_date_without_the_band_costs_no_request(series):
    manifest, _ = series
    with trace() as asked:
        found = read_block(spec_of(manifest), ["nir"], (1,), whole(manifest))
    assert asked.requests == 0
    assert not found["nir"].any()


def test_results_belong_to_the_caller(series):
    manifest, truth = series
    first = read_block(spec_of(manifest), ["red"], (0,), whole(manifest))["red"]
    first[:] = 0
    second = read_block(spec_of(manifest), ["red"], (0,), whole(manifest))["red"]
    np.testing.assert_array_equal(second[0], truth["red"][0])


@pytest.mark.parametrize(
    "bad",
    [
        window(0, 101, 0, 10),
        window(-1, 10, 0, 10),
        window(0, 10, 5, 5),
        window(10, 0, 0, 10),
        window(0, 10, 239, 241),
    ],
)
def test_windows_outside_are_refused(series, bad):
    manifest, _ = series
    with pytest.raises(SelectionError, match="lies outside of the grid of 100 rows and 240 columns"):
        read_block(spec_of(manifest), ["red"], (0,), bad)


@pytest.mark.parametrize("time", [-1, 3])
def test_dates_outside_are_refused(series, time):
    manifest, _ = series
    with pytest.raises(SelectionError, match=rf"dates \[{time}\] were asked for; the cube has 3, counted from 0"):
        read_block(spec_of(manifest), ["red"], (time,), whole(manifest))


def test_unknown_bands_and_levels_are_refused(series):
    manifest, _ = series
    with pytest.raises(SelectionError, match=r"band 'blue' was asked for; '.*' has nir, red"):
        read_block(spec_of(manifest), ["blue"], (0,), whole(manifest))
    with pytest.raises(SelectionError, match="level 4 was asked for"):
        read_block(spec_of(manifest, level=4), ["red"], (0,), whole(manifest))


def test_threads_read_at_once_without_mixing(series, tmp_path):
    manifest, truth = series
    expected = values_of((3, HEIGHT, WIDTH), "float64", 0)  # tiles of another size in the same scratch memory
    other = build(write(tmp_path / "a.tif", expected, "zstd", "pixel", {"ENDIANNESS": "BIG", "predictor": 3}))

    def one(seed):
        rng = np.random.default_rng(seed)
        for each in windows(seed, 100, 240, count=6):
            times = tuple(rng.integers(0, 3, 2).tolist())
            found = read_block(spec_of(manifest), ["red", "nir"], times, each)
            for band in ("red", "nir"):
                wanted = truth[band][list(times), each.top : each.bottom, each.left : each.right]
                np.testing.assert_array_equal(found[band], wanted)
            found = read_block(spec_of(other), ["band_2"], (0,), whole(other))
            np.testing.assert_array_equal(found["band_2"][0], expected[1])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))


def test_read_may_be_awaited_on_any_loop(series):
    manifest, truth = series

    async def main():
        loops_own_thread = threading.current_thread()
        found = await asyncio.gather(
            *[read(spec_of(manifest), ["red"], (time,), whole(manifest)) for time in (0, 1, 2, 0)]
        )
        assert threading.current_thread() is loops_own_thread
        return found

    for time, found in zip((0, 1, 2, 0), asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(found["red"][0], truth["red"][time])


@pytest.fixture
def victim(tmp_path):
    """A file of 3 x 3 tiles that a test may damage, its manifest, and what it held."""
    array = unique_values((170, 190), "uint16")
    path = write(tmp_path / "victim.tif", array, "deflate", "one", {"predictor": 2})
    return path, build(path), array


def test_a_file_cut_off_after_the_build_is_named(victim):
    path, manifest, _ = victim
    size = path.stat().st_size
    os.truncate(path, size - 10)
    with pytest.raises(SourceChangedError, match=rf"it had {size} bytes and has {size - 10}\); .* `cube refresh`"):
        read_block(spec_of(manifest), ["band_1"], (0,), window(0, 64, 0, 64))


@pytest.mark.parametrize("codec", ["deflate", "lzw", "zstd"])
def test_a_damaged_tile_is_named(tmp_path, codec):
    array = unique_values((170, 190), "uint16")
    path = write(tmp_path / "damaged.tif", array, codec, "one", {})
    manifest = build(path)
    offset, length = (int(table[0, 1, 2]) for table in (manifest.image(0).offsets, manifest.image(0).lengths))
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = bytes(255 - byte for byte in data[offset : offset + length])
    path.write_bytes(data)
    with pytest.raises(ReadError) as caught:
        read_block(spec_of(manifest), ["band_1"], (0,), whole(manifest))
    where = f"tile (2, 1) of level 0 (bytes {offset}-{offset + length - 1}) is damaged: "
    assert str(caught.value).startswith(f"{path.as_posix()}: {where}")


def test_a_vanished_file_is_named(victim):
    path, manifest, _ = victim
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"victim\.tif: there is no such file"):
        read_block(spec_of(manifest), ["band_1"], (0,), whole(manifest))


def test_a_vanished_folder_is_named(tmp_path):
    folder = tmp_path / "archive"
    manifest = build(write_cog(folder / "a.tif", unique_values((70, 70), "uint8")), to=tmp_path / "a.cube")
    folder.rename(tmp_path / "moved")
    with pytest.raises(SourceNotFoundError, match=r"archive/a\.tif: there is no such file"):
        read_block(spec_of(manifest), ["band_1"], (0,), whole(manifest))


def test_one_of_several_failures_is_raised_by_itself(tmp_path):
    for month in range(1, 13):
        write_cog(tmp_path / f"2024{month:02}01.tif", unique_values((70, 70), "uint8"))
    manifest = build(tmp_path)
    gone = ["20240301.tif", "20240501.tif", "20240901.tif"]
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(SourceNotFoundError) as caught:
        read_block(spec_of(manifest), ["band_1"], range(12), whole(manifest))
    assert caught.value.href.rpartition("/")[2] in gone


def test_a_failing_patch_url_names_the_source(victim):
    _, manifest, _ = victim

    def fail(href):
        raise RuntimeError("no token for https://host/token?secret=1234")

    spec = CubeSpec(manifest=manifest.url, version=manifest.version, patch_url=fail)
    with pytest.raises(ReadError, match=r"victim\.tif: .*patch_url failed with RuntimeError: no token") as caught:
        read_block(spec, ["band_1"], (0,), whole(manifest))
    assert "1234" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)
