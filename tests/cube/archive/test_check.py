"""What `check` says of sources that changed, vanished, cannot be read, or are not what their catalogue says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cube.archive.build import build
from cube.archive.check import check
from cube.io.trace import trace
from cube.manifest.open import Manifest
from cube.testing import Archive, ObjectStore, write_archive, write_cog
from tests.serving import Quiet, serving

DATES = ("2024-04-09", "2024-04-24")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return write_archive(tmp_path_factory.mktemp("archive"), size=128, tile=128, dates=DATES)


@pytest.fixture
def archive(original: Archive, tmp_path: Path) -> Archive:
    """A copy, to be spoilt."""
    shutil.copytree(original.root, tmp_path / "archive")
    return write_archive(tmp_path / "archive", size=128, tile=128, dates=DATES)


@pytest.fixture
def manifest(archive: Archive, tmp_path: Path) -> Manifest:
    return build(archive.items, name="s2", to=tmp_path / "s2.cube")


def relabel(archive: Archive, **properties) -> Path:
    """Write items that say something else of every asset, and return their file."""
    items = json.loads(archive.items.read_text(encoding="utf-8"))
    types = {"raster:bands", "bands", "data_type"}
    for item in items["features"]:
        item["bbox"] = properties.get("bbox", item["bbox"])
        for asset in item["assets"].values():
            for key in types if types & set(properties) else ():
                asset.pop(key, None)
            asset.update(properties)
    path = archive.root / "relabelled.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


# Whether they are there, and the same.


def test_all_is_well(manifest: Manifest) -> None:
    report = check(manifest)
    assert (report.ok, report.findings, report.sources) == (True, (), 10)
    assert str(report) == "10 sources: all is well"
    assert report.to_json() == {"ok": True, "name": "s2", "version": manifest.version, "sources": 10, "findings": ()}


def test_a_changed_a_vanished_and_an_unreadable_one(archive: Archive, manifest: Manifest) -> None:
    changed, gone, broken = (archive.path(DATES[0], band) for band in ("red", "nir", "scl"))
    sizes = {path: path.stat().st_size for path in (changed, gone, broken)}
    write_cog(changed, np.ones((128, 128), "uint16"), blocksize=128, nodata=0)
    gone.unlink()
    broken.write_bytes(b"<html>Sign in</html>")
    report = check(manifest)
    assert not report.ok
    found = {Path(each.href): each for each in report.findings}
    assert {path: each.kind for path, each in found.items()} == {
        changed: "changed",
        gone: "vanished",
        broken: "unreadable",
    }
    for path, each in found.items():
        assert each.expected.startswith(f"an object of {sizes[path]:,} bytes")
    sizes_now = f"it had {sizes[changed]} bytes and has {changed.stat().st_size}"
    assert found[changed].found == f"changed since it was scanned ({sizes_now})"
    assert "`cube refresh`" in found[changed].advice
    assert found[gone].found == "there is no such file"
    assert "--drop-vanished" in found[gone].advice
    assert "is not a TIFF" in found[broken].found
    assert str(report).endswith("10 sources: 1 changed, 1 vanished, 1 unreadable")
    assert f"changed: {changed.as_posix()}\n" in str(report)
    assert json.loads(json.dumps(report.to_json()))["findings"][0].keys() == {
        "kind", "href", "position", "expected", "found", "advice"
    }  # fmt: skip


def test_a_copied_folder_is_not_changed(archive: Archive, manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "archive", tmp_path / "elsewhere" / "archive", copy_function=shutil.copy)
    shutil.copytree(manifest.url, tmp_path / "elsewhere" / "s2.cube")
    from cube.manifest.open import open_manifest

    assert check(open_manifest(str(tmp_path / "elsewhere" / "s2.cube"))).ok


def test_one_small_request_a_source(archive: Archive, tmp_path: Path) -> None:
    with ObjectStore(archive.root) as store:
        manifest = build(f"{store.url}/items.json", to=tmp_path / "web.cube")
        store.reset()
        with trace() as asked:
            assert check(manifest, pixels=False).ok
        counts = store.counts()
        assert counts.requests == asked.requests == 10
        assert set(counts.paths.values()) == {1}
        assert counts.bytes == 10
        write_cog(archive.path(DATES[1], "nir"), np.ones((128, 128), "uint16"), blocksize=128, nodata=0)
        archive.path(DATES[1], "scl").unlink()
        kinds = {each.href.rpartition("_")[2]: each.kind for each in check(manifest, pixels=False).findings}
        assert kinds == {"nir.tif": "changed", "scl.tif": "vanished"}


@contextmanager
def forbidding() -> Iterator[str]:
    class Handler(Quiet):
        def reply(self) -> None:
            self.send_error(403)

    with serving(Handler) as url:
        yield url


def test_access_that_is_denied_is_unreadable(archive: Archive, tmp_path: Path) -> None:
    with ObjectStore(archive.root) as store, forbidding() as denied:
        manifest = build(f"{store.url}/items.json", bands="red", to=tmp_path / "web.cube")
        report = check(manifest, patch_url=lambda href: href.replace(store.url, denied))
    assert [each.kind for each in report.findings] == ["unreadable"] * 2
    assert "access denied (403)" in report.findings[0].found
    assert "give access to it" in report.findings[0].advice


def test_progress_is_told(manifest: Manifest) -> None:
    told: list[tuple[int, int]] = []
    check(manifest, pixels=False, progress=lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 10) for i in range(10)]


# Whether their catalogue says what their header says.


@pytest.mark.parametrize(
    ("properties", "said", "found"),
    [
        ({"proj:code": "EPSG:32632"}, "EPSG:32632", "EPSG:32633"),
        ({"proj:code": None, "proj:epsg": 32632}, "EPSG:32632", "EPSG:32633"),
        (
            {"proj:transform": [10, 0, 399970, 0, -10, 5400000]},
            "bounds 399970, 5398720, 401250, 5400000",
            "bounds 399960, 5398720, 401240, 5400000",
        ),
        ({"proj:shape": [128, 127]}, "bounds 399960, 5398720, 401230, 5400000", "bounds 399960, 5398720, 401240"),
        (
            {"proj:transform": None, "proj:bbox": [399960, 5398720, 401240, 5400100]},
            "bounds 399960, 5398720, 401240, 5400100",
            "bounds 399960",
        ),
        ({"proj:code": None, "bbox": [-71.1, 42.3, -71.0, 42.4]}, "bbox -71.1, 42.3, -71, 42.4", "bbox 13.6"),
    ],
)
def test_a_footprint_that_is_not_the_headers(
    archive: Archive, tmp_path: Path, properties: dict, said: str, found: str
) -> None:
    manifest = build(relabel(archive, **properties), bands="red", to=tmp_path / "s2.cube")
    report = check(manifest, pixels=False)
    assert [each.kind for each in report.findings] == ["mislabelled"] * 2
    for each in report.findings:
        assert each.expected == f"{said}, by its catalogue"
        assert each.found.startswith(found)
        assert each.found.endswith(", by its header")
        assert "correct the catalogue" in each.advice


@pytest.mark.parametrize(
    "properties",
    [
        {"proj:transform": [20, 0, 399960, 0, -20, 5400000, 0, 0, 1], "proj:shape": [64, 64]},  # of another asset
        {"proj:transform": [10, 0, 399963, 0, -10, 5400000]},  # less than half a pixel
        {"proj:code": None, "bbox": [13.0, 48.0, 14.0, 49.0]},
        {"proj:code": "nonsense", "proj:transform": None},
        {"proj:shape": ["a", None], "proj:bbox": [1, 2]},
        {"data_type": "uint16"},
        {"data_type": "other"},
        {"raster:bands": [{}]},
    ],
)
def test_what_is_no_contradiction(archive: Archive, tmp_path: Path, properties: dict) -> None:
    manifest = build(relabel(archive, **properties), bands="red", to=tmp_path / "s2.cube")
    assert check(manifest, pixels=False).ok


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"data_type": "int16"}, "int16"),
        ({"raster:bands": [{"data_type": "uint8"}]}, "uint8"),
        ({"bands": [{"data_type": "cfloat32"}]}, "cfloat32"),
    ],
)
def test_a_data_type_that_is_not_the_headers(archive: Archive, tmp_path: Path, properties: dict, said: str) -> None:
    manifest = build(relabel(archive, **properties), bands="red", to=tmp_path / "s2.cube")
    findings = check(manifest, pixels=False).findings
    assert {(each.kind, each.expected, each.found) for each in findings} == {
        ("mislabelled", f"{said} in band 'red', by its catalogue", "uint16, by its header")
    }


# Whether their pixels say what the offset says.


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items of two scenes of Sentinel-2 whose catalogue says an offset; the second scene's pixels have none."""
    folder = tmp_path_factory.mktemp("dark")
    rng = np.random.default_rng(0)
    features = []
    for i, (date, least) in enumerate((("20240409", 1001), ("20240424", 1))):
        for band in ("B04", "B08"):
            values = (least + rng.gamma(2, 200, (128, 128))).astype("uint16")
            write_cog(folder / f"{date}_{band}.tif", values, nodata=0, blocksize=128)
        said = {"nodata": 0, "scale": 0.0001, "offset": -0.1}
        features.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": f"S2A_33UVP_{date}_0_L2A",
                "collection": "mine",
                "geometry": None,
                "properties": {
                    "datetime": f"2024-04-{10 + i}T10:00:00Z",
                    "platform": "sentinel-2a",
                    "s2:processing_baseline": "05.10",
                },
                "links": [],
                "assets": {
                    band: {
                        "href": f"{folder.as_posix()}/{date}_{band}.tif",
                        "type": "image/tiff; application=geotiff",
                        "eo:bands": [{"name": band, "common_name": common}],
                        "raster:bands": [said],
                    }
                    for band, common in (("B04", "red"), ("B08", "nir"))
                },
            }
        )
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


def test_an_offset_that_the_pixels_do_not_show(dark: Path, tmp_path: Path) -> None:
    manifest = build(dark, to=tmp_path / "dark.cube")
    (finding,) = check(manifest).findings
    assert (finding.kind, Path(finding.href).name) == ("mislabelled", "20240424_B04.tif")
    assert finding.expected == "an offset of -0.1 in band 'red'"
    assert finding.found == "many pixels far below 1000: nothing has been added to them, an offset of 0"
    assert "correct its catalogue" in finding.advice
    assert check(manifest, pixels=False).ok


def test_pixels_are_read_of_one_band_a_scene(dark: Path, tmp_path: Path) -> None:
    manifest = build(dark, to=tmp_path / "dark.cube")
    with trace() as looked:
        check(manifest, pixels=False)
    with trace() as asked:
        check(manifest)
    extra = {Path(each.href).name for each in asked.records if each.stop > 1}
    assert {Path(each.href).name for each in looked.records} > extra == {"20240409_B04.tif", "20240424_B04.tif"}


def test_pixels_that_cannot_be_decoded_are_unreadable(dark: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dark.parent, copy)
    items = (copy / "items.json").read_text(encoding="utf-8").replace(dark.parent.as_posix(), copy.as_posix())
    (copy / "items.json").write_text(items, encoding="utf-8")
    path = copy / "20240409_B04.tif"
    offset = int(build(path, to=tmp_path / "file.cube").image(0).offsets.item())
    data = bytearray(path.read_bytes())
    data[offset : offset + 500] = bytes(500)  # before the manifest knows it
    path.write_bytes(data)
    manifest = build(copy / "items.json", to=tmp_path / "dark.cube")
    first = check(manifest).findings[0]
    assert (first.kind, Path(first.href).name) == ("unreadable", "20240409_B04.tif")
    assert "its smallest image is damaged" in first.found
