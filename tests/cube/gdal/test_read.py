"""The slow path against rasterio: formats and encodings that the project's own reader does not decode."""

from __future__ import annotations

import math
import shutil
import warnings

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, WktVersion

from cube.errors import HeaderError, ReadError, UnsupportedSourceError
from cube.gdal.read import gdal_header, read_valid_with_gdal, read_with_gdal
from cube.grid import Window
from cube.tiff.header import parse_header
from cube.tiff.ifd import ByteParts

TRANSFORM = Affine(10, 0, 600000, 0, -10, 5500000)
REAL = {
    "12 bits": "image-tiff__12bit.cropped.tiff",
    "12 bits, RGB": "image-tiff__12bit.cropped.rgb.tiff",
    "CMYK": "image-tiff__cmyk-3c-8b.tiff",
    "CMYK, 16 bits": "image-tiff__cmyk-3c-16b.tiff",
    "CMYK, floats": "image-tiff__cmyk-3c-32b-float.tiff",
    "CMYK, tiled": "image-tiff__tiled-cmyk-i8.tif",
    "LogLuv": "image-tiff__logluv-3c-16b.tiff",
    "PackBits": "image-tiff__issue_69_packbits.tiff",
    "alpha": "image-tiff__minisblack-2c-8b-alpha.tiff",
    "1 bit": "image-tiff__miniswhite-1c-1b.tiff",
    "1 bit, tiled": "image-tiff__tiled-gray-i1.tif",
    "palette of 2": "image-tiff__palette-1c-1b.tiff",
    "palette of 16": "image-tiff__palette-1c-4b.tiff",
}
FORMATS = {
    "JP2OpenJPEG": ("scene.jp2", {"REVERSIBLE": "YES", "QUALITY": "100"}),
    "HFA": ("scene.img", {}),
    "ENVI": ("scene.dat", {}),
    "EHdr": ("scene.bil", {}),
    "AAIGrid": ("scene.asc", {"DECIMAL_PRECISION": "3"}),
    "PNG": ("scene.png", {"WORLDFILE": "YES"}),
    "JPEG": ("scene.jpg", {"WORLDFILE": "YES", "QUALITY": "95"}),
    "WEBP": ("scene.webp", {"LOSSLESS": "YES"}),
    "GTiff": ("scene.tif", {"COMPRESS": "LZMA"}),
}


def ramp(samples=1, height=150, width=130, dtype="uint8"):
    """Return pixels that differ from their neighbours."""
    values = np.arange(samples * height * width, dtype="int64").reshape(samples, height, width)
    return ((values * 7 + values // width) % 251).astype(dtype)


def write(path, pixels, **profile):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "dtype": pixels.dtype.name, "crs": "EPSG:32633", "transform": TRANSFORM} | profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=count, height=height, width=width, **profile) as target:
            target.write(pixels)
    return str(path)


def copy_as(driver, tmp_path, pixels):
    """Return the path of a raster of another format."""
    name, options = FORMATS[driver]
    source = write(tmp_path / "source.tif", pixels)
    folder = tmp_path / driver
    folder.mkdir()
    rasterio.shutil.copy(source, str(folder / name), driver=driver, **options)
    return str(folder / name)


def whole(header, level=0):
    return Window(top=0, bottom=header.levels[level].height, left=0, right=header.levels[level].width)


def assert_same(href):
    """Compare header, all levels' pixels and validity, whole and in a window, with rasterio."""
    header = gdal_header(href)
    with rasterio.open(href) as dataset:
        assert (header.samples, header.transform) == (dataset.count, dataset.transform)
        assert set(dataset.dtypes) == {header.dtype.name}
        assert (header.scales, header.offsets) == (dataset.scales, dataset.offsets)
        assert header.descriptions == dataset.descriptions
        assert len(header.levels) == 1 + len(dataset.overviews(1))
        assert (header.crs_wkt is None) == (dataset.crs is None)
        if dataset.crs is not None:
            assert pyproj.CRS(header.crs_wkt) == pyproj.CRS(dataset.crs.to_wkt(version=WktVersion.WKT2_2019))
        assert repr(None if header.nodata is None else float(header.nodata)) == repr(dataset.nodata)
    for number, level in enumerate(header.levels):
        options = {"OVERVIEW_LEVEL": number - 1} if number else {}
        with rasterio.open(href, **options) as dataset:
            assert (level.height, level.width) == dataset.shape
            assert (level.tile_height, level.tile_width) == dataset.block_shapes[0]
            assert level.offsets.shape == level.lengths.shape == (header.samples, 0, 0)
            samples = list(range(header.samples))
            pixels, mask = dataset.read(), dataset.read_masks(1)
        found = read_with_gdal(href, level=number, samples=samples, window=whole(header, number))
        assert found.dtype == header.dtype
        np.testing.assert_array_equal(found, pixels)
        part = Window(top=level.height // 3, bottom=level.height, left=level.width // 4, right=level.width - 1)
        rows, columns = slice(part.top, part.bottom), slice(part.left, part.right)
        found = read_with_gdal(href, level=number, samples=samples[::-1], window=part)
        np.testing.assert_array_equal(found, pixels[::-1, rows, columns])
        if header.validity is not None:
            valid = read_valid_with_gdal(href, level=number, window=part)
            np.testing.assert_array_equal(valid, mask[rows, columns] != 0)
    return header


@pytest.mark.parametrize("kind", REAL)
def test_real_files_of_encodings_of_their_own_are_as_rasterio_reads_them(test_data, tmp_path, kind):
    source = test_data / "developmentseed__async-tiff" / f"fixtures__{REAL[kind]}"
    assert gdal_header(str(source)).refusal == "no georeferencing"
    path = tmp_path / source.name
    shutil.copy(source, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as dataset:
            dataset.transform, dataset.crs = TRANSFORM, "EPSG:32633"
    header = assert_same(str(path))
    assert header.refusal is None
    assert header.needs_gdal == "GTiff format"


@pytest.mark.parametrize(
    "name",
    ["tests__fixtures__cog_rgb_mask.tif", "tests__fixtures__cog_uint8_rgba.tif", "tests__fixtures__cog_cmap.tif"],
)
def test_headers_are_those_of_the_own_parser(test_data, name):
    path = test_data / "cogeotiff__rio-tiler" / name
    parts = ByteParts(path.stat().st_size)
    parts.add(0, path.read_bytes())
    own, found = parse_header(str(path), parts), assert_same(str(path))
    for field in ("dtype", "samples", "nodata", "scales", "offsets", "descriptions", "units", "alpha", "validity"):
        assert getattr(found, field) == getattr(own, field), field
    sizes = [[(level.width, level.height) for level in header.levels] for header in (own, found)]
    assert sizes[0] == sizes[1]
    assert found.transform.almost_equals(own.transform, precision=1e-9)


@pytest.mark.parametrize("driver", FORMATS)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_other_formats_with_a_grid(tmp_path, driver):
    pixels = ramp(3 if driver == "WEBP" else 1, height=300, width=280)
    path = copy_as(driver, tmp_path, pixels)
    header = assert_same(path)
    assert header.needs_gdal == f"{driver} format"
    assert header.refusal is None
    assert header.transform.almost_equals(TRANSFORM)
    if driver != "JPEG":
        np.testing.assert_array_equal(
            read_with_gdal(path, level=0, samples=range(len(pixels)), window=whole(header)), pixels
        )


def test_elevation_tiles(tmp_path):
    heights = ramp(height=1201, width=1201, dtype="int16")
    grid = {"crs": "EPSG:4326", "transform": Affine(1 / 1200, 0, 10 - 1 / 2400, 0, -1 / 1200, 47 + 1 / 2400)}
    source = write(tmp_path / "source.tif", heights, **grid)
    for driver, name in (("DTED", "scene.dt1"), ("SRTMHGT", "N46E010.hgt")):
        rasterio.shutil.copy(source, str(tmp_path / name), driver=driver)
        header = assert_same(str(tmp_path / name))
        assert header.needs_gdal == f"{driver} format"
        found = read_with_gdal(str(tmp_path / name), level=0, samples=[0], window=whole(header))
        np.testing.assert_array_equal(found, heights)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("uint8", 0),
        ("int8", -128),
        ("uint16", 65535),
        ("int32", -9999),
        ("float32", float(np.finfo("float32").min)),
        ("float64", -1e300),
        ("float32", math.nan),
        ("complex64", 0),
    ],
)
def test_nodata_is_a_number_of_the_dtype(tmp_path, dtype, nodata):
    header = assert_same(write(tmp_path / "a.tif", ramp(dtype=dtype), nodata=nodata))
    assert header.validity is None
    assert repr(header.nodata) == repr(nodata if header.dtype.kind in "iu" else float(nodata))


@pytest.mark.parametrize(
    ("dtype", "text"), [("uint64", str(2**64 - 1)), ("int64", str(-(2**63) + 1)), ("int64", str(2**53 + 1))]
)
def test_nodata_of_64_bits_keeps_all_of_them(tmp_path, dtype, text):
    path = write(tmp_path / "a.tif", ramp(dtype=dtype))
    beside = f'<PAMDataset><PAMRasterBand band="1"><NoDataValue>{text}</NoDataValue></PAMRasterBand></PAMDataset>'
    (tmp_path / "a.tif.aux.xml").write_text(beside)
    assert gdal_header(path).nodata == int(text)


def test_nodata_that_differs_by_sample_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", ramp(2))
    bands = [f'<PAMRasterBand band="{i}"><NoDataValue>{i}</NoDataValue></PAMRasterBand>' for i in (1, 2)]
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{''.join(bands)}</PAMDataset>")
    with pytest.raises(UnsupportedSourceError, match=r"a\.tif: has samples with several nodata values: 1, 2"):
        gdal_header(path)


@pytest.mark.parametrize(("kind", "dtype"), [("CInt16", "complex64"), ("CInt32", "complex128")])
def test_complex_integers_become_floats_that_hold_them(tmp_path, kind, dtype):
    values = np.array([[[2**15 - 1 - 5j, -7 + 3j]]] if kind == "CInt16" else [[[2**31 - 1 - 5j, 2**24 + 1 + 3j]]])
    source = write(tmp_path / "source.tif", values)
    path = str(tmp_path / "a.tif")
    with rasterio.open(source) as dataset, rasterio.MemoryFile(ext=".vrt") as file:
        rasterio.shutil.copy(dataset, file.name, driver="VRT")
        text = file.read().decode().replace('dataType="CFloat64"', f'dataType="{kind}"')
    with rasterio.MemoryFile(text.encode(), ext=".vrt") as file:
        rasterio.shutil.copy(file.name, path, driver="GTiff")
    header = gdal_header(path)
    assert header.dtype == dtype
    np.testing.assert_array_equal(read_with_gdal(path, level=0, samples=[0], window=whole(header)), values)


def test_encodings_names_and_units_by_sample(tmp_path):
    path = write(tmp_path / "a.tif", ramp(2))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5, 2.0), (-10.0, 0.0)
        dataset.units, dataset.descriptions = ("m", ""), ("height", None)
        dataset.update_tags(ACQUIRED="2024-01-01")
    header = assert_same(path)
    assert (header.scales, header.offsets) == ((0.5, 2.0), (-10.0, 0.0))
    assert (header.units, header.descriptions) == (("m", None), ("height", None))
    assert header.metadata["ACQUIRED"] == "2024-01-01"


def test_a_palette_keeps_its_index_and_its_colours(tmp_path):
    path = write(tmp_path / "a.tif", ramp() % 4, photometric="palette", nodata=0)
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255), 2: (0, 255, 0, 255), 3: (0, 0, 255, 255)})
    header = assert_same(path)
    assert header.photometric == 3
    assert header.colormap[:4] == ((0, 0, 0, 0), (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255))


@pytest.mark.parametrize("is_internal", [True, False])
def test_masks_inside_and_beside_the_file_at_every_level(tmp_path, is_internal):
    path = write(tmp_path / "a.tif", ramp(2, height=256, width=256), nodata=3, tiled=True, blockxsize=64, blockysize=64)
    valid = np.arange(256) % 11 > np.arange(256)[:, None] % 7
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=is_internal), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(valid)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
    assert (tmp_path / "a.tif.msk").exists() is not is_internal
    header = assert_same(path)
    assert header.validity == "mask"
    np.testing.assert_array_equal(read_valid_with_gdal(path, level=0, window=whole(header)), valid)


def test_overviews_beside_the_file(tmp_path):
    path = write(tmp_path / "a.tif", ramp(height=257, width=255))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4])
    assert (tmp_path / "a.tif.ovr").exists()
    header = assert_same(path)
    assert [(level.height, level.width) for level in header.levels] == [(257, 255), (129, 128), (65, 64)]


def test_alpha_is_validity_and_stays_a_sample(tmp_path):
    pixels = ramp(4)
    pixels[3] //= 2
    path = write(tmp_path / "a.tif", pixels, photometric="RGB")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    header = assert_same(path)
    assert (header.validity, header.alpha, header.samples, header.photometric) == ("alpha", 3, 4, 2)
    np.testing.assert_array_equal(read_valid_with_gdal(path, level=0, window=whole(header)), pixels[3] != 0)


def test_values_that_are_missing_together_are_a_mask(tmp_path):
    pixels = ramp(3) % 3
    path = write(tmp_path / "a.tif", pixels, photometric="RGB")
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(NODATA_VALUES="0 0 1")
    header = assert_same(path)
    assert header.validity == "mask"
    expected = ~((pixels[0] == 0) & (pixels[1] == 0) & (pixels[2] == 1))
    np.testing.assert_array_equal(read_valid_with_gdal(path, level=0, window=whole(header)), expected)


def test_gdal_metadata_beside_the_file_counts(tmp_path):
    path = write(tmp_path / "a.tif", ramp())
    (tmp_path / "a.tif.aux.xml").write_text(
        "<PAMDataset><SRS>EPSG:3035</SRS><GeoTransform>1, 2, 0, 3, 0, -4</GeoTransform>"
        '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue><Scale>0.1</Scale></PAMRasterBand></PAMDataset>'
    )
    header = assert_same(path)
    assert (header.transform, header.nodata, header.scales) == (Affine(2, 0, 1, 0, -4, 3), 9, (0.1,))
    assert pyproj.CRS(header.crs_wkt) == pyproj.CRS(3035)


@pytest.mark.parametrize("transform", [TRANSFORM * Affine.rotation(30), Affine(10, 0, 0, 0, 10, 5), Affine.scale(-2)])
def test_grids_that_are_rotated_south_up_or_mirrored(tmp_path, transform):
    header = assert_same(write(tmp_path / "a.tif", ramp(), transform=transform))
    assert header.refusal is None


def test_a_file_without_a_grid_is_refused_without_a_warning(tmp_path):
    points = [GroundControlPoint(row, column, 10 + column, 50 - row) for row, column in ((0, 0), (0, 9), (9, 0))]
    for name, profile, reason in (
        ("plain.tif", {}, "no georeferencing"),
        ("points.tif", {"gcps": points}, "ground control points instead of a transform"),
        ("flat.tif", {"transform": Affine(0, 1, 0, 0, 1, 0)}, "a degenerate grid"),
    ):
        header = gdal_header(write(tmp_path / name, ramp(), **({"transform": None} | profile)))
        assert header.refusal == reason
        assert (header.transform is None) == (name != "flat.tif")


def test_blocks_that_are_too_large_are_refused_before_they_are_read(tmp_path):
    profile = {"height": 2**15, "width": 2**15, "count": 1, "dtype": "uint16", "transform": TRANSFORM}
    profile |= {"tiled": True, "blockxsize": 2**15, "blockysize": 2**15, "sparse_ok": True}
    with rasterio.open(tmp_path / "a.tif", "w", **profile):
        pass
    assert (tmp_path / "a.tif").stat().st_size < 10_000
    with pytest.raises(UnsupportedSourceError, match=r"a\.tif: has blocks of 32768 x 32768 pixels, 2147483648 bytes"):
        gdal_header(str(tmp_path / "a.tif"))


def test_what_lies_outside_of_the_file_is_refused(tmp_path):
    path = write(tmp_path / "a.tif", ramp())
    with pytest.raises(ReadError, match=r"a\.tif: has 150 rows and 130 columns here; .*bottom=151"):
        read_with_gdal(path, level=0, samples=[0], window=Window(top=0, bottom=151, left=0, right=1))
    with pytest.raises(ReadError, match=r"a\.tif: has 150 rows"):
        read_valid_with_gdal(path, level=0, window=Window(top=-1, bottom=1, left=0, right=1))
    with pytest.raises(ReadError, match=r"a\.tif: has 1 samples; \[1\] were asked for"):
        read_with_gdal(path, level=0, samples=[1], window=Window(top=0, bottom=1, left=0, right=1))
    with pytest.raises(ReadError, match=r"a\.tif: GDAL cannot read it: Cannot open overview level 0"):
        read_with_gdal(path, level=1, samples=[0], window=Window(top=0, bottom=1, left=0, right=1))


def test_a_crs_that_gdal_cannot_express_is_none(test_data):
    path = str(test_data / "georust__geotiff" / "resources__merc.tif")
    with rasterio.open(path) as dataset:  # some versions of GDAL can
        assert (gdal_header(path).crs_wkt is None) == (dataset.crs is None)


def test_headers_that_are_cut_off_are_errors(tmp_path):
    path = tmp_path / "a.tif"
    write(path, ramp())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(HeaderError, match=r"a\.tif: GDAL cannot read it: .+"):
        gdal_header(str(path))
