"""An excerpt is a TIFF that says what the other one says, and has those of its tiles that were wanted."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine

from cube.testing import unique_values, write_cog
from cube.tiff import excerpt as module
from cube.tiff.excerpt import Excerpt, LevelTiles, plan_excerpt
from cube.tiff.header import Header, parse_header
from cube.tiff.ifd import ByteParts, MissingBytesError

KINDS: dict[str, dict[str, Any]] = {
    "cog": {"blocksize": 128},
    "big": {"driver": "GTiff", "BIGTIFF": "YES", "blockxsize": 64, "blockysize": 128},
    "big endian": {"driver": "GTiff", "ENDIANNESS": "BIG", "blockxsize": 64, "blockysize": 64},
    "planes": {"driver": "GTiff", "interleave": "band", "blockxsize": 64, "blockysize": 64},
    "strips": {"driver": "GTiff", "tiled": False, "blockysize": 10},
    "plain strips": {"driver": "GTiff", "tiled": False, "compress": "NONE", "blockysize": 3},
    "plain tiles": {"driver": "GTiff", "compress": "NONE", "blockxsize": 64, "blockysize": 64},
    "jpeg": {"driver": "GTiff", "compress": "JPEG", "photometric": "YCBCR", "blockxsize": 64, "blockysize": 64},
    "sparse": {"driver": "GTiff", "sparse_ok": True, "blockxsize": 64, "blockysize": 64},
    "one tile": {"driver": "GTiff", "blockxsize": 512, "blockysize": 512},
}


def read_header(data: bytes) -> Header:
    parts = ByteParts(len(data))
    parts.add(0, data)
    return parse_header("a.tif", parts)


def levels_of(header: Header) -> list[LevelTiles]:
    return [LevelTiles(level, level.mask) for level in header.levels]


def tiles_of(levels: list[LevelTiles]) -> dict[int, int]:
    tables = [table for level in levels for table in level if table is not None]
    pairs = [zip(each.offsets.ravel().tolist(), each.lengths.ravel().tolist(), strict=True) for each in tables]
    return {offset: length for each in pairs for offset, length in each if length}


def plan(data: bytes, levels: list[LevelTiles], wanted: dict[int, int], **options: Any) -> Excerpt:
    """Plan with no more of the file than is asked for."""
    parts = ByteParts(len(data))
    for _ in range(20):
        try:
            return plan_excerpt("a.tif", parts, levels, wanted, **options)
        except MissingBytesError as missing:
            for start, stop in missing.ranges:
                parts.add(start, data[start:stop])
    raise AssertionError("it asks for ever")


def assemble(data: bytes, found: Excerpt, wanted: dict[int, int]) -> bytes:
    out = bytearray(found.size)
    out[: len(found.head)] = found.head
    for offset, length in wanted.items():
        out[found.places[offset] : found.places[offset] + length] = data[offset : offset + length]
    return bytes(out)


def said(header: Header) -> dict[str, str]:
    """What a header says, places of tiles apart."""
    levels = [
        [getattr(each, name) for name in ("width", "height", "tile_width", "tile_height", "compression", "predictor")]
        for each in header.levels
    ]
    return {each.name: repr(getattr(header, each.name)) for each in fields(Header) if each.name != "levels"} | {
        "levels": repr(levels)
    }


def make(path: Path, kind: str) -> bytes:
    options = KINDS[kind]
    is_jpeg = options.get("compress") == "JPEG"
    pixels = unique_values((3, 300, 260), "uint8" if is_jpeg else "uint16")
    if kind == "sparse":
        pixels[:, 64:192] = 0
    described = {} if is_jpeg else {"nodata": 0, "scale": 0.5, "offset": -3.0, "descriptions": ("a", "b", "c")}
    write_cog(path, pixels, **described, **options)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_gdal_and_we_read_the_same(kind: str, share: float, tmp_path: Path) -> None:
    data = make(tmp_path / "a.tif", kind)
    levels = levels_of(read_header(data))
    chosen = random.Random(kind)
    wanted = {offset: length for offset, length in tiles_of(levels).items() if chosen.random() < share}
    found = plan(data, levels, wanted)
    made = assemble(data, found, wanted)
    again = read_header(made)
    if kind != "plain strips" or share == 1:  # cut anew where they follow one another
        assert said(again) == said(read_header(data))
    assert tiles_of(levels_of(again)) == {found.places[offset]: length for offset, length in wanted.items()}
    (tmp_path / "b.tif").write_bytes(made)
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "b.tif") as other:
        assert {**one.profile, "blockysize": 0} == {**other.profile, "blockysize": 0}
        assert (one.tags(), one.scales, one.descriptions) == (other.tags(), other.scales, other.descriptions)
        assert one.overviews(1) == other.overviews(1)
        expected, read = one.read(), other.read()
        # JPEG's decoder gives black where there is no tile.
        assert ((expected == read) | (read == 0)).all()
        assert (read != 0).any() == bool(wanted)
        assert share < 1 or (expected == read).all()


def test_of_a_large_selection_a_bigtiff_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(tmp_path / "a.tif", "big endian")
    levels = levels_of(read_header(data))
    wanted = tiles_of(levels)
    monkeypatch.setattr(module, "_CLASSIC_BYTES", 1000)
    made = assemble(data, plan(data, levels, wanted), wanted)
    assert made[:4] == b"MM\0+"
    (tmp_path / "b.tif").write_bytes(made)
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.profile == other.profile


def test_masks_and_other_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    make(path, "planes")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(unique_values((300, 260), "uint8") > 100)
        file.build_overviews([2, 4])
    data = path.read_bytes()
    levels = levels_of(read_header(data))
    assert levels[1].mask is not None
    levels = levels[:2]  # the last overview is left out
    wanted = tiles_of(levels)
    made = assemble(data, plan(data, levels, wanted), wanted)
    (tmp_path / "b.tif").write_bytes(made)
    assert len(read_header(made).levels) == 2
    for options in ({}, {"OVERVIEW_LEVEL": 0}):
        with rasterio.open(path, **options) as one, rasterio.open(tmp_path / "b.tif", **options) as other:
            np.testing.assert_array_equal(one.read(masked=True).mask, other.read(masked=True).mask)
            np.testing.assert_array_equal(one.read(), other.read())


def test_overviews_in_subifds(tmp_path: Path) -> None:
    pixels = unique_values((256, 256), "uint16")
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
    tags = [(33550, 12, 3, (10.0, 10.0, 0.0)), (33922, 12, 6, (0.0, 0, 0, 5e5, 5e6, 0)), (34735, 3, len(keys), keys)]
    how: dict[str, Any] = {"tile": (64, 64), "compression": "zlib", "photometric": "minisblack", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, subifds=1, extratags=tags, **how)
        file.write(pixels[::2, ::2], subfiletype=1, **how)
    data = (tmp_path / "a.tif").read_bytes()
    levels = levels_of(read_header(data))
    assert len(levels) == 2
    wanted = tiles_of(levels)
    made = assemble(data, plan(data, levels, wanted), wanted)
    assert said(read_header(made)) == said(read_header(data))
    (tmp_path / "b.tif").write_bytes(made)
    with rasterio.open(tmp_path / "b.tif") as main, rasterio.open(tmp_path / "b.tif", OVERVIEW_LEVEL=0) as overview:
        np.testing.assert_array_equal(main.read(1), pixels)
        np.testing.assert_array_equal(overview.read(1), pixels[::2, ::2])


@pytest.mark.parametrize("is_point", [False, True])
@pytest.mark.parametrize("transform", [Affine(10, 0, 5e5, 0, -10, 5e6), Affine(8, 3, 5e5, 3, -8, 5e6)])
def test_an_overview_takes_the_place_of_the_main_image(transform: Affine, is_point: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pixels = unique_values((300, 260), "uint16")
    write_cog(path, pixels, driver="GTiff", transform=transform, nodata=0, scale=2, blockxsize=64, blockysize=64)
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point" if is_point else "Area", note="kept")
        file.build_overviews([2, 4])
    data = path.read_bytes()
    header = read_header(data)
    levels = levels_of(header)[1:]
    wanted = tiles_of(levels)
    made = assemble(data, plan(data, levels, wanted, first=1, scale=(2.0, 2.0)), wanted)
    (tmp_path / "b.tif").write_bytes(made)
    with rasterio.open(path, OVERVIEW_LEVEL=0) as one, rasterio.open(tmp_path / "b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.transform.almost_equals(other.transform, 1e-6)
        assert (one.crs, one.nodata, (2.0,)) == (other.crs, other.nodata, other.scales)
        assert other.tags()["note"] == "kept"
        assert other.overviews(1) == [2]
    found = read_header(made).transform
    assert found is not None
    assert found.almost_equals(transform * Affine.scale(2), 1e-6)
