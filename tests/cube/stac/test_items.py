"""STAC GeoParquet to Items; the other forms are tested with `cube.stac.sources`, links with `cube.stac.links`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cube.errors import BuildError
from cube.stac.items import is_stac, read_items
from cube.stac.sources import sources_from_stac
from cube.testing import ObjectStore

TIFF = "image/tiff; application=geotiff; profile=cloud-optimized"


def _row(identifier: str, assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """An Item as stac-geoparquet keeps it: the properties beside the rest, keys of all Items in the assets."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": identifier,
        "geometry": b"\x01",
        "bbox": {"xmin": 0.0, "ymin": 0.0, "xmax": 1.0, "ymax": 1.0},
        "links": [],
        "assets": assets,
        "collection": "made",
        **properties,
    }


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    rows = [
        _row(
            "one",
            {
                "red": {"href": "./red.tif", "type": TIFF, "raster:bands": [{"nodata": 0.0, "scale": None}]},
                "nir": {"href": "https://host/nir.tif", "type": TIFF, "raster:bands": None},
            },
            datetime=datetime(2024, 5, 1, 10, 20, 30, 123456, tzinfo=UTC),
            platform="sat",
            tiles=[1, 2],
        ),
        _row(
            "two", {"red": {"href": "b/red.tif", "type": TIFF}, "nir": None}, datetime=None, platform=None, tiles=None
        ),
    ]
    path = tmp_path / "items.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_geoparquet_gives_items_as_json_does(parquet: Path) -> None:
    assert is_stac(parquet)
    sources = sources_from_stac(parquet)
    assert [(source.item, source.asset, source.collection) for source in sources] == [
        ("one", "red", "made"),
        ("one", "nir", "made"),
        ("two", "red", "made"),
    ]
    assert Path(sources[0].href) == parquet.parent / "red.tif"
    assert sources[1].href == "https://host/nir.tif"
    assert [source.time for source in sources] == [*[np.datetime64("2024-05-01T10:20:30.123456", "us")] * 2, None]
    assert sources[0].properties == {
        "datetime": "2024-05-01T10:20:30.123456+00:00",
        "platform": "sat",
        "tiles": [1, 2],
    }
    assert sources[2].properties == {}
    (band,) = sources[0].bands
    assert (band.name, band.nodata, band.scale) == ("red", 0.0, None)


def test_geoparquet_over_http(parquet: Path) -> None:
    with ObjectStore(parquet.parent) as store:
        url = f"{store.url}/items.parquet"
        assert is_stac(url)
        assert sources_from_stac(url)[0].href == f"{store.url}/red.tif"


def test_other_parquet_is_no_stac(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["a"], "band": ["b"]}), path)
    assert not is_stac(path)
    with pytest.raises(BuildError, match=r"a\.parquet: feature 0 has no id, properties and assets"):
        read_items(path)
    path.write_bytes(b"PAR1 or not")
    assert not is_stac(path)
    with pytest.raises(BuildError, match=r"a\.parquet is not Parquet"):
        read_items(path)
    (tmp_path / "refs.parquet").mkdir()
    assert not is_stac(tmp_path / "refs.parquet")


def test_real_geoparquet_is_its_json(test_data: Path) -> None:
    folder = test_data / "stac" / "stac-utils__stac-geoparquet"
    sources = sources_from_stac(folder / "tests__data__naip.parquet")
    read = {source.item: source for source in sources_from_stac(folder / "tests__data__naip-pc.json")}
    assert len(sources) == 5
    assert [band.name for band in sources[0].bands] == ["red", "green", "blue", "nir"]
    for source in sources:
        json.dumps(source.properties)
        assert source.time is not None
        if source.item in read:
            assert (source.href, source.time) == (read[source.item].href, read[source.item].time)
