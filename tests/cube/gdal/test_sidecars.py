"""Which sidecars are found, against what GDAL makes of them."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine

from cube.gdal.sidecars import find_sidecars

WORLD = "2\n0\n0\n-2\n101\n199\n"
TAB = """!table
!version 300

Definition Table
  File "a.tif"
  Type "RASTER"
  (10,50) (0,0) Label "Pt 1",
  (18,50) (8,0) Label "Pt 2",
  (10,42) (0,8) Label "Pt 3"
  CoordSys Earth Projection 1, 104
  Units "degree"
"""
STATISTICS = """<PAMDataset><Metadata><MDI key="AREA_OR_POINT">Area</MDI></Metadata><PAMRasterBand band="1">
<Histograms><HistItem><HistMin>0</HistMin><HistMax>9</HistMax><BucketCount>2</BucketCount><HistCounts>1|2</HistCounts>
</HistItem></Histograms><Metadata><MDI key="STATISTICS_MAXIMUM">9</MDI><MDI key="STATISTICS_MEAN">4.5</MDI></Metadata>
</PAMRasterBand></PAMDataset>"""
CHANGES = {
    "SRS": "<SRS>EPSG:3035</SRS>",
    "geotransform": "<geotransform>1, 2, 0, 3, 0, -4</geotransform>",
    "NODATA_VALUES": '<Metadata><MDI key="NODATA_VALUES">5</MDI></Metadata>',
    "GeodataXform": """<Metadata domain="xml:ESRI" format="xml"><GeodataXform><SpatialReference><WKT>
        GEOGCS["GCS_WGS_1984",DATUM["D_WGS_1984",SPHEROID["WGS_1984",6378137.0,298.257223563]],PRIMEM["Greenwich",0.0],
        UNIT["Degree",0.0174532925199433]]</WKT></SpatialReference></GeodataXform></Metadata>""",
    "NoDataValue": '<PAMRasterBand band="1"><NoDataValue le_hex_equiv="0">7</NoDataValue></PAMRasterBand>',
    "Scale": '<PAMRasterBand band="1"><Scale>2</Scale></PAMRasterBand>',
    "Offset": '<PAMRasterBand band="1"><Offset>2</Offset></PAMRasterBand>',
    "UnitType": '<PAMRasterBand band="1"><UnitType>m</UnitType></PAMRasterBand>',
    "Description": '<PAMRasterBand band="1"><Description>red</Description></PAMRasterBand>',
    "ColorInterp": '<PAMRasterBand band="1"><ColorInterp>Alpha</ColorInterp></PAMRasterBand>',
    "ColorTable": '<PAMRasterBand band="1"><ColorTable><Entry c1="9"/></ColorTable></PAMRasterBand>',
}


def write(path, *, size=8, **profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", count=1, height=size, width=size, **profile
        ) as target:
            target.write(np.arange(size * size, dtype="uint8").reshape(1, size, size))
    return str(path)


def with_grid(path, **profile):
    return write(path, crs="EPSG:32633", transform=Affine(1, 0, 5, 0, -1, 5), **profile)


def view(path):
    """Return what GDAL says of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            crs = dataset.crs and dataset.crs.to_wkt()
            said = [dataset.transform, crs, dataset.nodatavals, dataset.scales, dataset.offsets, dataset.units]
            said += [dataset.descriptions, dataset.colorinterp, dataset.mask_flag_enums, dataset.overviews(1)]
            try:
                return [*said, dataset.colormap(1)]
            except ValueError:
                return said


def test_a_file_alone_has_none(tmp_path):
    assert find_sidecars([with_grid(tmp_path / "a.tif")]) == {}
    assert find_sidecars([str(tmp_path / "absent" / "a.tif"), "https://example.com/a.tif", "s3://bucket/a.tif"]) == {}


@pytest.mark.parametrize("is_mask", [True, False])
def test_masks_and_overviews(tmp_path, is_mask):
    path = with_grid(tmp_path / "a.tif", size=64)
    before = view(path)
    if is_mask:
        with rasterio.open(path, "r+") as dataset, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
            dataset.write_mask(np.eye(64, dtype=bool))
    else:
        with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2])
    assert view(path) != before
    assert find_sidecars([path]) == {path: f"sidecar a.tif.{'msk' if is_mask else 'ovr'}"}


@pytest.mark.parametrize("element", CHANGES)
def test_metadata_that_changes_what_gdal_says(tmp_path, element):
    path = with_grid(tmp_path / "a.tif")
    before = view(path)
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{CHANGES[element]}</PAMDataset>")
    assert view(path) != before
    assert find_sidecars([path]) == {path: f"sidecar a.tif.aux.xml ({element})"}


@pytest.mark.parametrize("text", [STATISTICS, "", "<PAMDataset></PAMDataset>", "not XML"])
def test_statistics_do_not_slow_a_file_down(tmp_path, text):
    path = with_grid(tmp_path / "a.tif")
    before = view(path)
    (tmp_path / "a.tif.aux.xml").write_text(text)
    assert view(path) == before
    assert find_sidecars([path]) == {}


def test_metadata_that_is_too_long_counts_unseen(tmp_path):
    path = with_grid(tmp_path / "a.tif")
    with (tmp_path / "a.tif.aux.xml").open("wb") as file:
        file.truncate(2**24 + 1)
    assert find_sidecars([path]) == {path: "sidecar a.tif.aux.xml (more than 16777216 bytes)"}


@pytest.mark.parametrize(
    ("file", "beside", "text"),
    [
        ("a.tif", "a.tfw", WORLD),
        ("a.tif", "a.tifw", WORLD),
        ("a.tif", "a.wld", WORLD),
        ("a.tif", "a.tab", TAB),
        ("a.tiff", "a.tfw", WORLD),
        ("a.tiff", "a.tiffw", WORLD),
        ("a.TIF", "a.tfw", WORLD),
        ("a.tif", "a.TFW", WORLD),
    ],
)
def test_world_files_count_for_files_without_a_grid_alone(tmp_path, file, beside, text):
    path = write(tmp_path / file)
    before = view(path)
    (tmp_path / beside).write_text(text)
    assert view(path) != before
    assert find_sidecars([path], incomplete={path}) == {path: f"sidecar {beside}"}
    assert find_sidecars([path]) == {}
    (tmp_path / file).unlink()
    before = view(with_grid(tmp_path / file))
    (tmp_path / beside).unlink()
    assert view(path) == before


def test_files_that_gdal_does_not_look_at_do_not_count(tmp_path):
    path = write(tmp_path / "a.tif")
    before = view(path)
    for name in ("a.tif.tfw", "a.prj", "a.aux.xml", "b.tfw", "b.tif.msk", "a.tif.txt"):
        (tmp_path / name).write_text(WORLD)
    (tmp_path / "a.xml").write_text("<metadata><title>refSysInfo</title></metadata>")
    assert view(path) == before
    assert find_sidecars([path], incomplete={path}) == {}


def test_esri_metadata_names_a_crs_for_files_without_one(tmp_path):
    path = write(tmp_path / "a.tif", transform=Affine(1, 0, 5, 0, -1, 5))
    before = view(path)
    code = '<RefSystem><refSysID><identCode code="32633"/></refSysID></RefSystem>'
    (tmp_path / "a.xml").write_text(f"<metadata><refSysInfo>{code}</refSysInfo></metadata>")
    assert view(path) != before
    assert find_sidecars([path], incomplete={path}) == {path: "sidecar a.xml (refSysInfo)"}


def test_a_folder_is_listed_once_whatever_its_size(tmp_path, monkeypatch):
    hrefs = [str(tmp_path / f"{i}.tif") for i in range(500)]
    for i in range(0, 500, 2):
        (tmp_path / f"{i}.tif.aux.xml").write_text(STATISTICS)
    (tmp_path / "7.tif.ovr").touch()
    listed = []
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or real(folder))
    assert find_sidecars(hrefs) == {hrefs[7]: "sidecar 7.tif.ovr"}
    assert len(listed) == 1
