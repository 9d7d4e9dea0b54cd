from __future__ import annotations

import itertools
import json
import os
import pickle
import re
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.transform import from_origin

from cube.archive.build import build, count_by_band
from cube.dataset import open_cube
from cube.errors import BuildError, CubeError, ManifestError, ReadError, SelectionError, SourceNotFoundError
from cube.grid import Window
from cube.reader import read_block
from cube.settings import get_settings
from cube.spec import CubeSpec, Placing
from cube.testing import ObjectStore
from cube.testing.archive import unique_values, write_cog
from tests.serving import Quiet, serving

NORTH = {"driver": "GTiff", "blockxsize": 64, "blockysize": 64}


def write(path, seed=0, *, column=0, row=0, shape=(100, 120), dtype="uint16", pixel=10, **options):
    """Write a file whose corner lies some columns and rows from a common origin, and return its numbers."""
    array = unique_values(shape, dtype, seed)
    transform = from_origin(500000 + column * pixel, 5000000 - row * pixel, pixel, pixel)
    write_cog(path, array, **({"transform": transform} | NORTH | options))
    return array


def stored(manifest, band, times=(0,), level=0, **what):
    height, width = manifest.grid_at(level).shape
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, level=level, **what)
    return read_block(spec, [band], times, Window(top=0, bottom=height, left=0, right=width))[band]


def stored_on(manifest, lattice, band):
    """Return all that is stored on one of several grids."""
    height, width = manifest.grids[lattice].full.shape
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, on=Placing(lattice=lattice))
    return read_block(spec, [band], (0,), Window(top=0, bottom=height, left=0, right=width))[band]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Two dates of two bands, by path below a folder."""
    folder = tmp_path_factory.mktemp("series")
    arrays = {}
    for seed, (date, band) in enumerate(itertools.product(("20240101", "20240201"), ("nir", "red"))):
        arrays[f"{date}_{band}.tif"] = write(folder / f"{date}_{band}.tif", seed)
    (folder / "notes.txt").write_text("not a COG")
    return folder, arrays


@pytest.fixture
def hrefs(series):
    return sorted(path.as_posix() for path in series[0].glob("*.tif"))


@pytest.fixture
def items(series):
    """The STAC ItemCollection of the series, as JSON, with absolute hrefs."""
    folder, _ = series
    features = [
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": f"scene-{date}",
            "collection": "scenes",
            "geometry": None,
            "links": [],
            "properties": {"datetime": f"{date[:4]}-{date[4:6]}-{date[6:]}T10:30:00Z"},
            "assets": {
                key: {
                    "href": (folder / f"{date}_{name}.tif").as_posix(),
                    "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                    "roles": ["data"],
                    "eo:bands": [{"name": key, "common_name": name}],
                }
                for key, name in (("B04", "red"), ("B08", "nir"))
            },
        }
        for date in ("20240101", "20240201")
    ]
    return {"type": "FeatureCollection", "features": features}


# What an archive can be named by.


def forms_of(name, folder, hrefs, items, tmp_path):
    if name == "items file":
        (tmp_path / "items.json").write_text(json.dumps(items))
        return tmp_path / "items.json"
    return {
        "folder": folder,
        "folder as text": f"{folder}/",
        "glob": f"{folder}/2024*_*.tif",
        "deep glob": f"{folder.parent}/**/{folder.name}/*.tif",
        "paths": hrefs,
        "path objects": [Path(href) for href in hrefs],
        "file urls": [Path(href).as_uri() for href in hrefs],
        "a generator": (href for href in hrefs),
        "paths twice": [*hrefs, *hrefs],
        "items as dict": items,
        "items as list": items["features"],
        "pystac": pystac.ItemCollection.from_dict(items),
        "pystac items": [pystac.Item.from_dict(item) for item in items["features"]],
    }[name]


FORMS = [
    "folder", "folder as text", "glob", "deep glob", "paths", "path objects", "file urls", "a generator", "paths twice",
    "items as dict", "items as list", "items file", "pystac", "pystac items",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_the_same_cube(form, series, hrefs, items, tmp_path):
    folder, arrays = series
    manifest = build(forms_of(form, folder, hrefs, items, tmp_path), to=tmp_path / "s.cube")
    assert {band.name for band in manifest.bands} == {"red", "nir"}
    assert [str(time)[:10] for time in manifest.times] == ["2024-01-01", "2024-02-01"]
    assert len(manifest) == 4
    assert count_by_band(manifest) == {"red": 2, "nir": 2}
    for band in ("red", "nir"):
        expected = [arrays[f"{date}_{band}.tif"] for date in ("20240101", "20240201")]
        np.testing.assert_array_equal(stored(manifest, band, (0, 1)), expected)


def test_a_relative_path_is_found_from_elsewhere(series, tmp_path, monkeypatch):
    folder, arrays = series
    monkeypatch.chdir(folder)
    manifest = build("20240101_red.tif", to=tmp_path / "s.cube")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(stored(manifest, "band_1")[0], arrays["20240101_red.tif"])


@pytest.mark.parametrize("name", ["a b", "ä", "a%20b", "a#b", "a+b", "100%", "[x]", "a{1}b", "a,b;c"])
def test_any_file_name_is_read(tmp_path, name):
    array = write(tmp_path / f"{name}.tif")
    np.testing.assert_array_equal(stored(build(tmp_path / f"{name}.tif"), "band_1")[0], array)


def test_without_a_path_it_goes_to_the_cache_by_its_own_name(series, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBE_CACHE_DIR", str(tmp_path / "cache"))
    get_settings.cache_clear()
    folder, _ = series
    one, same, other = build(folder), build(folder), build(folder / "20240101_red.tif", name="other one")
    monkeypatch.undo()
    get_settings.cache_clear()
    assert one.url == same.url
    assert Path(one.url).parent == tmp_path / "cache" / "cubes"
    assert one.name == folder.name
    assert other.name == "other one"
    assert other.url != one.url


def test_attributes_are_kept(series, tmp_path):
    attributes = {"title": "ä", "license": "CC-BY-4.0", "numbers": [1, 2.5]}
    assert build(series[0], to=tmp_path / "s.cube", attributes=attributes).attributes == {
        "archive": "4 items, 2 dates",
        **attributes,
    }


def test_progress_counts_every_source(series, tmp_path):
    seen = []
    build(series[0], to=tmp_path / "s.cube", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("bands", ["red", ["red"]])
def test_only_some_bands(series, items, bands, tmp_path):
    for what in (series[0], items):
        manifest = build(what, bands=bands, to=tmp_path / "s.cube")
        assert [band.name for band in manifest.bands] == ["red"]
        assert len(manifest) == 2


def test_an_asset_key_selects_a_band(items, tmp_path):
    manifest = build(items, bands=["B08"], to=tmp_path / "s.cube")
    assert [(band.name, band.aliases) for band in manifest.bands] == [("nir", ("B08",))]


def test_a_pattern_names_band_and_time(tmp_path):
    write(tmp_path / "x_red_31122023.tif")
    manifest = build(tmp_path, pattern="x_{band}_{time:%d%m%Y}.tif")
    assert [band.name for band in manifest.bands] == ["red"]
    assert str(manifest.times[0])[:10] == "2023-12-31"


def test_bands_of_one_file_are_called_as_it_describes_them(tmp_path):
    array = write(tmp_path / "a.tif", shape=(3, 70, 80), descriptions=("red", "green", "blue"))
    manifest = build(tmp_path / "a.tif")
    assert [band.name for band in manifest.bands] == ["red", "green", "blue"]
    np.testing.assert_array_equal(stored(manifest, "blue")[0], array[2])


@pytest.mark.parametrize("descriptions", [("same", "same"), ("two words", "b"), ("x", "y"), ("time", "b"), ("", "")])
def test_descriptions_that_cannot_be_names_are_not(tmp_path, descriptions):
    write(tmp_path / "a.tif", shape=(2, 70, 80), descriptions=descriptions)
    assert [band.name for band in build(tmp_path / "a.tif").bands] == ["band_1", "band_2"]


def test_layers_without_time_get_none(tmp_path):
    write(tmp_path / "dem.tif")
    assert build(tmp_path).times is None


def test_bands_that_lack_a_date_say_so_or_take_a_fill_value(tmp_path):
    for seed, name in enumerate(("20240101_red", "20240101_nir", "20240201_red", "20240301_red")):
        write(tmp_path / f"{name}.tif", seed)
    with pytest.raises(BuildError) as caught:
        build(tmp_path)
    assert str(caught.value).startswith(
        "band 'nir' (uint16, no nodata value) is missing at 2 places or dates: "
        "2024-02-01T00:00:00, 2024-03-01T00:00:00; give a fill value"
    )
    manifest = build(tmp_path, fill_value=65535)
    assert (manifest.band("nir").nodata, manifest.band("red").nodata) == (65535, 65535)
    assert (stored(manifest, "nir", (1, 2)) == 65535).all()


def test_parts_of_the_grid_without_a_file_are_holes(tmp_path):
    write(tmp_path / "t0.tif")
    write(tmp_path / "t1.tif", 1, column=200)
    with pytest.raises(BuildError, match="missing at 1 places or dates: parts of the grid that no file covers"):
        build(tmp_path)
    found = stored(build(tmp_path, fill_value=65535), "band_1")[0]
    assert (found[:, 120:200] == 65535).all()
    assert (found[:, :120] != 65535).all()


def test_float_holes_are_nan(tmp_path):
    write(tmp_path / "t0.tif", dtype="float32")
    write(tmp_path / "t1.tif", 1, column=200, dtype="float32")
    assert np.isnan(stored(build(tmp_path), "band_1")[0][:, 120:200]).all()


# What cannot be one cube.


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{0}/empty", r"the folder .*/empty holds no \.tif or \.tiff file"),
        ("{0}/nothing", "nothing: there is no such file or folder"),
        ("{0}/nothing.tif", r"nothing\.tif: there is no such file or folder"),
        ("{0}/nothing*.tif", r"no file matches .*nothing\*\.tif"),
        ("{0}/nothing.json", r"nothing\.json: there is no such file or folder"),
        ("ftp://host/a.tif", r"ftp://host/a\.tif: no store reads ftp:// URLs; use a path, http"),
        ("az://container/a.tif", r"az://container/a\.tif: its store cannot be opened: nothing says whose container"),
        ("http://127.0.0.1:99999/a.tif", r"a\.tif: its store cannot be opened: Port out of range"),
        ([], "a list: no COG was found; give a folder, a glob, URLs or STAC items"),
        (None, "cannot build a cube from a NoneType; give paths, URLs or STAC items"),
        (3, "cannot build a cube from a int"),
        ([3], "cannot build a cube from a int in a list"),
        ({"type": "FeatureCollection", "features": []}, "holds no STAC Items"),
    ],
)
def test_what_names_no_archive_is_refused(tmp_path, what, message, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.png").write_bytes(b"x")
    with pytest.raises(BuildError, match=message):
        build(what.format(tmp_path) if isinstance(what, str) else what)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends before byte 0: it is empty"),
        (b"II", r"is not a TIFF|truncated\?"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), r"is not a TIFF.* it begins with b'\\x89PNG"),
        (b"<html><body>Sign in</body></html>", r"is not a TIFF.* it begins with b'<html><b'"),
        (b"II*\x00" + bytes([8, 0, 0, 0]), r"truncated\?"),
        (b"II*\x00" + bytes([0, 0, 0, 0]) + bytes(20), "has no image"),
    ],
)
def test_what_is_no_tiff_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "bad.tif").write_bytes(content)
    write(tmp_path / "good.tif")
    with pytest.raises(BuildError, match=rf"1 of 2 sources cannot be part of a cube:\n  .*/bad\.tif: .*({message})"):
        build(tmp_path)


def test_a_truncated_header_is_refused(tmp_path):
    write(tmp_path / "a.tif")
    size = (tmp_path / "a.tif").stat().st_size
    for length in (9, 60, size // 2, size - 1):
        data = (tmp_path / "a.tif").read_bytes()[:length]
        (tmp_path / "cut.tif").write_bytes(data)
        with pytest.raises(BuildError, match=r"/cut\.tif: .*truncated\?"):
            build(tmp_path / "cut.tif")


def test_many_bad_files_are_counted_and_three_shown(tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.tif").write_bytes(b"no")
    with pytest.raises(BuildError) as caught:
        build(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[0] == "7 of 7 sources cannot be part of a cube:"
    assert [line.split(": ")[0].rpartition("/")[2] for line in lines[1:4]] == ["0.tif", "1.tif", "2.tif"]
    assert lines[4].strip() == "and 4 more"


def test_a_crs_is_given_to_files_that_name_none(tmp_path):
    write(tmp_path / "a.tif", crs=None)
    with pytest.raises(
        BuildError,
        match=r"/a\.tif: has no coordinate reference system; say which one it is in \(build\(\.\.\., crs=\), --crs\)",
    ):
        build(tmp_path)
    with pytest.raises(BuildError, match=r"crs='EPSG:0' is no coordinate reference system"):
        build(tmp_path, crs="EPSG:0")
    assert build(tmp_path, crs="EPSG:32633").grid.crs == "EPSG:32633"
    write(tmp_path / "b.tif", crs="EPSG:32634")
    assert build(tmp_path / "b.tif", crs="EPSG:32633").grid.crs == "EPSG:32634"


def test_a_band_over_several_grids_needs_a_number_for_no_data(tmp_path):
    write(tmp_path / "one.tif")
    write(tmp_path / "two.tif", 1, crs="EPSG:32634")
    with pytest.raises(
        BuildError, match=r"band 'band_1' \(uint16, no nodata value\) is missing at 1 places or dates: "
    ):
        build(tmp_path, pattern="{tile}.tif")
    manifest = build(tmp_path, pattern="{tile}.tif", fill_value=65535)
    assert (manifest.band("band_1").nodata, len(manifest.grids)) == (65535, 2)


@pytest.mark.parametrize("what", ["plain", "dated"])
def test_two_plain_files_of_the_very_same_place_are_refused(tmp_path, what):
    date = "_20240201" if what == "dated" else ""
    for name in ("one", "two"):
        write(tmp_path / f"{name}{date}.tif")
    write(tmp_path / f"three{date.replace('02', '03')}.tif", column=240)
    when = r" at 2024-02-01T00:00:00" if date else ""
    message = (
        rf"band 'band_1'{when} comes from two files of the same place, .*one{date}\.tif and .*two{date}\.tif; "
        r"leave one out, or tell bands and times apart with a pattern \(pattern=, --pattern\)"
    )
    with pytest.raises(BuildError, match=message):
        build(tmp_path, pattern="{tile}_{time:%Y%m%d}.tif" if date else "{tile}.tif", fill_value=65535)


# What lies on other grids, or on each other.


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crs": "EPSG:32634"}, r"1 in EPSG:32634, pixels of 10 x -10 from \(500000, 5000000\)"),
        ({"pixel": 20}, r"1 in EPSG:32633, pixels of 20 x -20 from \(500000, 5000000\)"),
        ({"column": 120.5}, r"1 in EPSG:32633, pixels of 10 x -10 from \(501205, 5000000\)"),
        ({"row": -0.25}, r"1 in EPSG:32633, pixels of 10 x -10 from \(500000, 5000002\.5\)"),
    ],
)
def test_what_lies_on_another_grid_becomes_a_grid_of_its_own(tmp_path, options, text):
    one = write(tmp_path / "one.tif", nodata=0)
    two = write(tmp_path / "two.tif", 1, nodata=0, **options)
    three = write(tmp_path / "three.tif", 2, nodata=0, column=120, row=7)
    manifest = build(tmp_path, pattern="{tile}.tif")
    rows = {Path(row["href"]).stem: row for row in manifest.source_table().to_pylist()}
    (number,) = {rows["one"]["grid"], rows["three"]["grid"]}
    assert rows["two"]["grid"] == 1 - number
    assert {name: (row["row"], row["column"]) for name, row in rows.items()} == {
        "one": (0, 0),
        "two": (0, 0),
        "three": (7, 120),
    }
    for source in range(3):
        name = Path(manifest.facts(source).href).stem
        with rasterio.open(manifest.facts(source).href) as oracle:
            grid = manifest.grid_of(source)
            assert grid == manifest.grids[rows[name]["grid"]].full
            assert (grid.crs, rows[name]["crs"]) == (oracle.crs.to_string(), oracle.crs.to_string())
            assert grid.transform[:2] == tuple(oracle.transform)[:2]
    with pytest.raises(SelectionError) as caught:
        open_cube(manifest)
    assert re.search(
        rf"^the sources of '.*' lie on 2 grids:\n  2 in EPSG:32633, pixels of 10 x -10 .*\n  {text}\nsay which pixels",
        str(caught.value),
    )
    beside = np.zeros((107, 240), "uint16")
    beside[:100, :120] = one
    beside[7:, 120:] = three
    np.testing.assert_array_equal(stored_on(manifest, number, "band_1"), beside[None])
    np.testing.assert_array_equal(stored_on(manifest, 1 - number, "band_1"), two[None])


def test_bands_of_one_grid_are_opened_though_others_lie_elsewhere(tmp_path):
    red = write(tmp_path / "20240101_red.tif", nodata=0)
    swir = write(tmp_path / "20240101_swir.tif", 1, nodata=0, pixel=20)
    manifest = build(tmp_path, pattern="{time:%Y%m%d}_{band}.tif")
    with pytest.raises(SelectionError, match="lie on 2 grids"):
        open_cube(manifest)
    for name, expected in (("red", red), ("swir", swir)):
        ds = open_cube(manifest, name, mask_and_scale=False)
        np.testing.assert_array_equal(ds[name][0], expected)
        assert ds.x[1] - ds.x[0] == {"red": 10, "swir": 20}[name]


def test_neighbours_that_share_an_edge_do_not_overlap(tmp_path):
    for number, (row, column) in enumerate(itertools.product((0, 100), (0, 120))):
        write(tmp_path / f"t{number}.tif", number, row=row, column=column)
    assert build(tmp_path, pattern="{tile}.tif").grid.shape == (200, 240)


def test_files_that_overlap_are_fused_the_first_on_top(tmp_path):
    one = write(tmp_path / "one.tif")
    two = write(tmp_path / "two.tif", 1, column=119, row=0)
    manifest = build(tmp_path, pattern="{tile}.tif")
    assert (manifest.grid.shape, len(manifest.grids)) == ((100, 239), 1)
    expected = np.concatenate([one, two[:, 1:]], axis=1)
    np.testing.assert_array_equal(stored(manifest, "band_1")[0], expected)
    expected[:, 119] = two[:, 0]
    np.testing.assert_array_equal(stored(manifest, "band_1", on=Placing(fuse="last"))[0], expected)


def test_overlaps_are_those_of_one_date(tmp_path):
    arrays = {}
    for seed, (tile, date) in enumerate(itertools.product((0, 1), ("20240101", "20240201"))):
        column = tile * (120 if date == "20240101" else 60)
        arrays[tile, date] = write(tmp_path / f"t{tile}_{date}.tif", seed, column=column, nodata=0)
    manifest = build(tmp_path, pattern="{tile}_{time:%Y%m%d}.tif")
    first, second = stored(manifest, "band_1", (0, 1))
    np.testing.assert_array_equal(first, np.concatenate([arrays[0, "20240101"], arrays[1, "20240101"]], axis=1))
    np.testing.assert_array_equal(second[:, :120], arrays[0, "20240201"])
    np.testing.assert_array_equal(second[:, 120:180], arrays[1, "20240201"][:, 60:])
    assert (second[:, 180:] == 0).all()


def test_scenes_of_a_catalogue_may_be_of_the_very_same_place(series, items, tmp_path):
    _, arrays = series
    for item in items["features"]:
        item["properties"]["datetime"] = "2024-01-01T10:30:00Z"
    manifest = build(items, to=tmp_path / "s.cube")
    assert (len(manifest), manifest.steps) == (4, 1)
    np.testing.assert_array_equal(stored(manifest, "red")[0], arrays["20240101_red.tif"])
    np.testing.assert_array_equal(stored(manifest, "red", on=Placing(fuse="last"))[0], arrays["20240201_red.tif"])


def test_times_are_all_or_nothing(items, tmp_path):
    items["features"][1]["properties"] = {"datetime": None}
    with pytest.raises(
        BuildError, match=r"2 of 4 sources have a time and .*20240201_red\.tif has none; build a cube of each"
    ):
        build(items, to=tmp_path / "s.cube")


def test_unknown_bands_are_refused(series, items):
    with pytest.raises(BuildError, match="bands blue were asked for; the sources have nir, red"):
        build(series[0], bands=["red", "blue"])
    with pytest.raises(SelectionError, match="blue"):
        build(items, bands=["blue"])


def test_a_band_cannot_be_called_as_a_coordinate(tmp_path):
    write(tmp_path / "x_20240101.tif")
    with pytest.raises(BuildError, match=r"x_20240101\.tif is called 'x', as a coordinate of the cube is; name it by"):
        build(tmp_path, pattern="{band}_{time:%Y%m%d}.tif")


def test_more_bands_in_the_catalogue_than_in_the_file_are_refused(items, tmp_path):
    items["features"][0]["assets"]["B04"]["eo:bands"] = [{"name": "a"}, {"name": "b"}]
    with pytest.raises(BuildError, match=r"20240101_red\.tif: has 1 bands; its catalogue describes 2"):
        build(items, to=tmp_path / "s.cube")


def test_a_pattern_that_fits_nothing_shows_names(series):
    with pytest.raises(BuildError, match=r"matches none of 4 files, such as 20240101_nir\.tif"):
        build(series[0], pattern="{band}-{time:%Y}.tif")


def test_other_files_are_never_overwritten(series, tmp_path):
    folder, _ = series
    with pytest.raises(ManifestError, match="holds other files and no manifest; choose another name or folder"):
        build(folder, to=folder)
    (tmp_path / "file.cube").write_text("mine")
    with pytest.raises(ManifestError, match="holds other files and no manifest"):
        build(folder, to=tmp_path / "file.cube")
    assert (tmp_path / "file.cube").read_text() == "mine"
    with pytest.raises(ManifestError, match="is a URL; write into a local folder"):
        build(folder, to="https://host/a.cube")


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_cannot_be_written_is_told(series, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ManifestError, match="cannot be written"):
        build(series[0], to=tmp_path / "s.cube")


# Over a network.


@contextmanager
def server_of(folder, answers=()):
    """Serve a folder with ranges; the first requests get the statuses in `answers`. Gives (url, requested paths)."""
    pending, asked = list(answers), []

    class Handler(Quiet):
        def reply(self):
            asked.append(self.path)
            path = folder / unquote(urlsplit(self.path).path).lstrip("/")
            status = pending.pop(0) if pending else 206 if path.is_file() else 404
            body = path.read_bytes() if status == 206 else b"secret body"
            if status == 206:
                start, stop = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
                stop = min(stop + 1, len(body))
            self.send_response(status)
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
                body = body[start:stop]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as url:
        yield url, asked


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"access denied \(401\): credentials are missing, expired or not enough"),
        (403, r"access denied \(403\): credentials are missing, expired or not enough"),
        (404, r"there is no such object \(404\)"),
        (418, "could not be read: the store answered 418"),
    ],
)
def test_what_a_store_refuses_is_told_at_once(tmp_path, status, message):
    write(tmp_path / "a.tif")
    with server_of(tmp_path, [status]) as (url, asked):
        with pytest.raises(BuildError, match=rf"{url}/a\.tif: .*{message}"):
            build(f"{url}/a.tif")
        assert len(asked) == 1


def test_a_store_that_stays_busy_is_told_after_the_last_attempt(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBE_ATTEMPTS", "2")
    get_settings.cache_clear()
    write(tmp_path / "a.tif")
    with server_of(tmp_path, [500, 503]) as (url, asked):
        with pytest.raises(BuildError, match=r"could not be read after 2 attempts: the store answered 503"):
            build(f"{url}/a.tif")
        assert len(asked) == 2
    monkeypatch.undo()
    get_settings.cache_clear()


def test_a_folder_of_an_object_store_is_built_from_urls(series, tmp_path):
    folder, arrays = series
    with ObjectStore(folder) as store:
        manifest = build([f"{store.url}/{name}" for name in arrays], to=tmp_path / "s.cube")
        assert store.counts().paths == dict.fromkeys(arrays, 1)
        expected = [arrays[f"{date}_red.tif"] for date in ("20240101", "20240201")]
        np.testing.assert_array_equal(stored(manifest, "red", (0, 1)), expected)


def test_a_stac_url_is_read_and_its_relative_hrefs_found(series, items, tmp_path):
    folder, arrays = series
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = "./" + asset["href"].rpartition("/")[2]
    (folder / "items.json").write_text(json.dumps(items))
    with ObjectStore(folder) as store:
        manifest = build(f"{store.url}/items.json", to=tmp_path / "s.cube")
        assert manifest.facts(0).href.startswith(f"{store.url}/2024")
        np.testing.assert_array_equal(stored(manifest, "red")[0], arrays["20240101_red.tif"])
    (folder / "items.json").unlink()


SECRET = "s3cr3t-signature"


def signed(href):
    return f"{href}?sig={SECRET}&se=2030"


def everything(folder):
    return b"".join(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def test_a_signature_is_sent_and_never_kept(tmp_path):
    array = write(tmp_path / "a.tif")
    with server_of(tmp_path) as (url, asked):
        manifest = build(f"{url}/a.tif", patch_url=signed, to=tmp_path / "s.cube")
        np.testing.assert_array_equal(stored(manifest, "band_1", patch_url=signed)[0], array)
    assert asked == [f"/a.tif?sig={SECRET}&se=2030"] * 2
    assert SECRET.encode() not in everything(manifest.url)
    spec = CubeSpec(manifest=manifest.url, version=manifest.version, patch_url=signed)
    texts = [repr(manifest), repr(spec), repr(manifest.facts(0)), repr(manifest.source_table().to_pylist())]
    assert not any(SECRET in text for text in texts)
    assert SECRET.encode() not in pickle.dumps(spec.__dask_tokenize__())


@pytest.mark.parametrize("status", [401, 403, 404, 416, 418, 500])
def test_a_signature_is_in_no_error(tmp_path, status, monkeypatch):
    monkeypatch.setenv("CUBE_ATTEMPTS", "1")
    get_settings.cache_clear()
    write(tmp_path / "a.tif")
    with server_of(tmp_path, [status]) as (url, _), pytest.raises(BuildError) as of_build:
        build(f"{url}/a.tif", patch_url=signed)
    with server_of(tmp_path) as (url, _):
        manifest = build(f"{url}/a.tif", patch_url=signed, to=tmp_path / "s.cube")
    # The server is gone by now.
    for patch in (signed, lambda _: f"ftp://host/{SECRET}", lambda href: href.replace("://", f"://user:{SECRET}@")):
        with pytest.raises(ReadError) as of_read:
            stored(manifest, "band_1", patch_url=patch)
        assert SECRET not in str(of_read.value)
        assert of_read.value.href == f"{url}/a.tif"
    assert SECRET not in str(of_build.value)
    monkeypatch.undo()
    get_settings.cache_clear()


def test_a_failing_patch_url_is_an_error_of_each_source(series):
    def fail(href):
        raise OSError("no network")

    with pytest.raises(
        BuildError, match=r"4 of 4 sources .*\n  .*_nir\.tif: patch_url failed with OSError: no network"
    ):
        build(series[0], patch_url=fail)


def test_a_source_that_vanished_is_named(tmp_path):
    write(tmp_path / "a.tif")
    with server_of(tmp_path) as (url, _):
        manifest = build(f"{url}/a.tif")
        (tmp_path / "a.tif").unlink()
        with pytest.raises(SourceNotFoundError) as caught:
            stored(manifest, "band_1")
    assert str(caught.value).startswith(f"{url}/a.tif: tile (0, 0) of level 0 and 3 more: there is no such object")
    assert isinstance(caught.value, CubeError)


@pytest.mark.parametrize("key", ["sig", "X-Amz-Signature", "X-Goog-Signature", "token"])
def test_hrefs_that_are_signed_already_are_refused(key):
    with pytest.raises(BuildError, match=r"a\.tif\?… carries a signature .*; give unsigned hrefs, and patch_url="):
        build(f"https://host/a.tif?v=1&{key}={SECRET}")


def test_some_bands_of_a_file_of_many(tmp_path):
    arrays = write(tmp_path / "a.tif", shape=(3, 70, 80), descriptions=("red", "green", "blue"))
    manifest = build(tmp_path / "a.tif", bands=["blue", "red"], to=tmp_path / "s.cube")
    assert [band.name for band in manifest.bands] == ["red", "blue"]
    np.testing.assert_array_equal(stored(manifest, "blue")[0], arrays[2])


def test_samples_that_the_catalogue_does_not_describe_are_bands_too(items, tmp_path):
    arrays = write(tmp_path / "visual.tif", shape=(3, 100, 120))
    asset = {"href": (tmp_path / "visual.tif").as_posix(), "type": "image/tiff; application=geotiff", "roles": ["data"]}
    items["features"] = [items["features"][0] | {"assets": {"visual": asset}}]
    manifest = build(items, to=tmp_path / "s.cube")
    assert len(manifest.bands) == 3
    for band, expected in zip(manifest.bands, arrays, strict=True):
        np.testing.assert_array_equal(stored(manifest, band.name)[0], expected)


def test_no_bands_at_all_is_told(series):
    with pytest.raises(BuildError, match=r"bands=\[\]: give names of bands, or None for all"):
        build(series[0], bands=[])


def test_passwords_are_refused_and_signed_catalogues_are_not_written_down(tmp_path):
    with pytest.raises(BuildError, match=r"^http://…@host/a\.tif carries a signature or password") as caught:
        build(f"http://bob:{SECRET}@host/a.tif")
    assert SECRET not in str(caught.value)
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "i", "geometry": None, "links": [],
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
        "assets": {"red": {"href": "a.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}},
    }  # fmt: skip
    write(tmp_path / "a.tif")
    (tmp_path / "i.json").write_text(json.dumps(item))
    with ObjectStore(tmp_path) as store:
        manifest = build(f"{store.url}/i.json?sig={SECRET}", to=tmp_path / "a.cube")
    assert not any(SECRET.encode() in path.read_bytes() for path in (tmp_path / "a.cube").iterdir() if path.is_file())
    assert "what" not in manifest.built


def test_levels_end_where_the_mask_does(tmp_path):
    path = tmp_path / "a.tif"
    write(path, dtype="uint8", driver="GTiff")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2])
        file.write_mask(np.arange(file.width) % 2 == np.zeros((file.height, 1)))
    manifest = build(path, to=tmp_path / "a.cube")
    assert len(manifest.levels) == 1
    assert np.isnan(open_cube(manifest).band_1.values).mean() == 0.5
