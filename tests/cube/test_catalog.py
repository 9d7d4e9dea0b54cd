"""catalog.yaml: read, added to by many at a time, and opened by intake itself, from a file and over HTTP."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import intake
import numpy as np
import pytest
import xarray as xr
import yaml

from cube.catalog import (
    CUBE_DRIVER,
    ZARR_DRIVER,
    Entry,
    add_entry,
    dump_catalog,
    find_entry,
    kerchunk_entry,
    manifest_entry,
    parse_catalog,
    read_catalog,
    zarr_entry,
)
from cube.errors import CatalogError
from cube.testing.objectstore import ObjectStore

FOREIGN = """\
# Cubes of the valley
# second line

name: valley
plugins:
  source: []
metadata: {version: 1, owner: me}
sources:
  # a comment that does not stay
  old:
    driver: csv
    cache: [{type: file}]
    parameters: {year: {type: int, default: 2020}}
    args: {urlpath: "{{ CATALOG_DIR }}/a.csv"}
  shared: &shared
    driver: intake_xarray.xzarr.ZarrSource
    args: {urlpath: "http://host/a.zarr"}
  again:
    <<: *shared
    description: the same
"""


def _entry(name: str = "one", **args: object) -> Entry:
    return Entry(name=name, driver=CUBE_DRIVER, args={"urlpath": "/data/one.cube", **args})


# Reading


def test_read_catalog(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(FOREIGN, encoding="utf-8-sig")
    catalog = read_catalog(path)
    assert list(catalog) == ["old", "shared", "again"]
    assert len(catalog) == 3
    assert catalog["again"] == Entry(
        name="again", driver=ZARR_DRIVER, args={"urlpath": "http://host/a.zarr"}, description="the same"
    )
    assert "new" not in catalog
    with pytest.raises(KeyError):
        catalog["new"]


@pytest.mark.parametrize("text", ["", "sources:", "metadata: {version: 1}", "sources: {}"])
def test_empty_catalogues(text: str) -> None:
    assert list(parse_catalog(text, href="c.yaml")) == []


def _bomb(levels: int, width: int) -> str:
    """Merge `width` times the mapping before, `levels` times over."""
    lines = ["a0: &a0 {k0: 0, k1: 1, k2: 2}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}], j{n}: 0}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sources: [", "is not YAML"),
        ("sources: {a: !!python/object/apply:os.getcwd []}", "is not YAML"),
        ("sources: {a: 2020-99-99}", "is not YAML"),
        ("[" * 3_000, "is not YAML"),
        ("- a", "is not a catalogue"),
        ("text", "is not a catalogue"),
        ("sources: [a]", "is not a catalogue"),
        ("version: 2\nentries: {}", "of version 2"),
        ("#" * 10_000_001, "more than 10,000,000 bytes"),
        (_bomb(9, 60), "merges more than"),
        (f"a: &a 1\nb: [{', '.join(['*a'] * 1001)}]", "more than 1000 aliases"),
    ],
)
def test_what_is_no_catalogue_is_named_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(CatalogError, match=rf"(?s)c\.yaml.*{reason}"):
        parse_catalog(text, href="c.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"catalog\.yaml cannot be read"):
        read_catalog(tmp_path / "catalog.yaml")
    (tmp_path / "catalog.yaml").write_bytes(b"sources: {a: \xff}")
    with pytest.raises(CatalogError, match=r"catalog\.yaml cannot be read"):
        read_catalog(tmp_path / "catalog.yaml")


@pytest.mark.parametrize(
    "source", ["3", "{args: {}}", "{driver: [a, b]}", "{driver: a, args: [1]}", "{driver: a, metadata: x}"]
)
def test_a_damaged_entry_spoils_no_other(source: str) -> None:
    catalog = parse_catalog(f"sources: {{bad: {source}, good: {{driver: a}}}}", href="c.yaml")
    assert catalog["good"] == Entry(name="good", driver="a")
    with pytest.raises(CatalogError, match=r"c\.yaml: entry 'bad'"):
        catalog["bad"]


def test_find_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_entry("one", tmp_path) is None
    add_entry(tmp_path / "catalog.yaml", _entry())
    assert find_entry("one", tmp_path) == _entry()
    assert find_entry("two", tmp_path) is None
    monkeypatch.chdir(tmp_path)
    assert find_entry("one") == _entry()
    (tmp_path / "catalog.yaml").write_text("sources: [")
    assert find_entry("rasters/*.tif") is None  # no name of an entry, so the file does not matter
    with pytest.raises(CatalogError, match=r"catalog\.yaml is not YAML"):
        find_entry("one")


# Entries


@pytest.mark.parametrize("name", ["a", "s2-2024.v1_b", "0"])
def test_names(name: str) -> None:
    assert _entry(name).name == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "é", "a\n", "{{x}}"])
def test_bad_names(name: str) -> None:
    with pytest.raises(CatalogError, match="cannot be the name of a catalogue entry"):
        _entry(name)


def test_targets_beside_the_catalogue_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = tmp_path / "catalog.yaml"

    def urlpath(target: str | Path, catalog: str | Path | None = catalog) -> object:
        return manifest_entry("a", target, catalog=catalog).args["urlpath"]

    assert urlpath("a.cube") == "{{ CATALOG_DIR }}/a.cube"
    assert urlpath("a.cube", "catalog.yaml") == "{{ CATALOG_DIR }}/a.cube"
    assert urlpath(tmp_path / "sub" / "a.cube") == "{{ CATALOG_DIR }}/sub/a.cube"
    assert urlpath("../a.cube") == (tmp_path.parent / "a.cube").as_posix()
    assert urlpath("a.cube", None) == (tmp_path / "a.cube").as_posix()
    assert urlpath("s3://bucket/a.cube") == "s3://bucket/a.cube"
    assert urlpath("{{CATALOG_DIR}}/a.cube", None) == "{{CATALOG_DIR}}/a.cube"


def test_manifest_url() -> None:
    entry = Entry(name="a", driver=CUBE_DRIVER, args={"urlpath": "{{CATALOG_DIR}}/a.cube"})
    assert entry.manifest_url("/data/") == "/data/a.cube"
    assert entry.manifest_url("C:\\data\\1") == "C:\\data\\1/a.cube"
    assert entry.manifest_url("http://host/c") == "http://host/c/a.cube"
    assert _entry().manifest_url("/elsewhere") == "/data/one.cube"
    assert zarr_entry("a", "http://host/a.zarr").manifest_url("/data") is None
    assert Entry(name="a", driver=CUBE_DRIVER).manifest_url("/data") is None


def test_entries_keep_what_they_are_told(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    told = {"description": "Ünter uns", "license": "CC-BY-4.0", "metadata": {"bands": ["red"], "n": 3}}
    for make, name in ((manifest_entry, "a"), (zarr_entry, "b"), (kerchunk_entry, "c")):
        entry = make(name, "http://host/x", **told)
        assert entry.metadata == {"license": "CC-BY-4.0", "bands": ["red"], "n": 3}
        add_entry(path, entry)
        assert read_catalog(path)[name] == entry


# Writing


def test_add_entry_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(FOREIGN)
    add_entry(path, _entry())
    before, after = yaml.safe_load(FOREIGN), yaml.safe_load(path.read_text())
    added = after["sources"].pop("one")
    assert after == before
    assert added == {"driver": CUBE_DRIVER, "args": {"urlpath": "/data/one.cube"}}
    assert path.read_text().startswith("# Cubes of the valley\n# second line\n\nname: valley\n")
    assert list(tmp_path.iterdir()) == [path]


def test_add_entry_replaces_its_namesake(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    add_entry(path, _entry(bands=["red"]))
    add_entry(path, _entry("two"))
    add_entry(path, _entry())
    assert dict(read_catalog(path)) == {"one": _entry(), "two": _entry("two")}
    assert path.read_text() == dump_catalog([_entry(), _entry("two")])


@pytest.mark.skipif(os.name == "nt", reason="file modes and symbolic links are POSIX's")
def test_add_entry_keeps_the_mode_and_the_link(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    add_entry(path, _entry())
    path.chmod(0o604)
    link = tmp_path / "link.yaml"
    link.symlink_to(path)
    add_entry(link, _entry("two"))
    assert link.is_symlink()
    assert list(read_catalog(path)) == ["one", "two"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_failed_write_leaves_the_file_and_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    add_entry(path, _entry())
    text = path.read_text()
    with pytest.raises(CatalogError, match="YAML has no form for"):
        add_entry(path, _entry("two", chunks=np.float32(3)))
    assert path.read_text() == text
    path.write_text("sources: [")
    with pytest.raises(CatalogError, match="is not YAML"):
        add_entry(path, _entry("two"))
    assert path.read_text() == "sources: ["
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CatalogError, match="cannot be written"):
        add_entry(tmp_path / "none" / "catalog.yaml", _entry())


def test_a_lock_that_stays_is_named(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    lock = tmp_path / "catalog.yaml.lock"
    lock.touch()
    with pytest.raises(CatalogError, match=re.escape(f"if none is, delete {lock}")):
        add_entry(path, _entry(), timeout_s=0)
    assert lock.exists()
    assert not path.exists()


def test_many_writers_lose_nothing_and_readers_see_whole_files(tmp_path: Path) -> None:
    """Two processes of two threads each write; meanwhile every read finds a sound catalogue that only grows."""
    path = tmp_path / "catalog.yaml"
    code = (
        "import sys, threading\n"
        "from cube.catalog import Entry, add_entry\n"
        "def work(name):\n"
        "    for i in range(5):\n"
        "        entry = Entry(name=f'{name}-{i}', driver='d', metadata={'text': 'x' * 500})\n"
        "        add_entry(sys.argv[1], entry, timeout_s=60)\n"
        "threads = [threading.Thread(target=work, args=(f'{sys.argv[2]}{t}',)) for t in 'ab']\n"
        "[t.start() for t in threads], [t.join() for t in threads]\n"
    )
    add_entry(path, _entry())
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(2)]
    seen = [1]
    while any(writer.poll() is None for writer in writers):
        seen.append(len(read_catalog(path)))
        time.sleep(0.01)  # the writers want the processor too
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == sorted(seen)
    names = {f"{n}{t}-{i}" for n in range(2) for t in "ab" for i in range(5)}
    assert set(read_catalog(path)) == {"one", *names}
    assert list(tmp_path.iterdir()) == [path]


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    threads = [threading.Thread(target=add_entry, args=(path, _entry(f"e{n}"))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_catalog(path)) == {f"e{n}" for n in range(8)}


# Opened by intake


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    values = np.arange(64, dtype="uint16").reshape(8, 8)
    return xr.Dataset({"red": (("y", "x"), values)}, coords={"y": np.arange(8.0), "x": np.arange(8.0)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, dataset: xr.Dataset) -> Path:
    """Return a folder of two Zarr stores and plain bytes for references to point at."""
    folder = tmp_path_factory.mktemp("served")
    chunked = dataset.chunk({"y": 4})
    chunked.to_zarr(folder / "v2.zarr", zarr_format=2, consolidated=True)
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        chunked.to_zarr(folder / "v3.zarr", zarr_format=3, consolidated=True)
    (folder / "red.bin").write_bytes(dataset["red"].values.astype("<u2").tobytes())
    return folder


def _references(target: str) -> dict[str, object]:
    def array(shape: list[int], chunks: list[int], dtype: str) -> str:
        fixed = {"zarr_format": 2, "compressor": None, "filters": None, "fill_value": None, "order": "C"}
        return json.dumps({**fixed, "shape": shape, "chunks": chunks, "dtype": dtype})

    axis = "base64:" + base64.b64encode(np.arange(8.0).tobytes()).decode()
    return {
        ".zgroup": '{"zarr_format": 2}',
        ".zattrs": "{}",
        "red/.zarray": array([8, 8], [4, 8], "<u2"),
        "red/.zattrs": '{"_ARRAY_DIMENSIONS": ["y", "x"]}',
        "red/0.0": [target, 0, 64],
        "red/1.0": [target, 64, 64],
        "y/.zarray": array([8], [8], "<f8"),
        "y/.zattrs": '{"_ARRAY_DIMENSIONS": ["y"]}',
        "y/0": axis,
        "x/.zarray": array([8], [8], "<f8"),
        "x/.zattrs": '{"_ARRAY_DIMENSIONS": ["x"]}',
        "x/0": axis,
    }


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[Callable[[str], list[intake.catalog.Catalog]]]:
    """Return the catalogue opened as a file and over HTTP, with entries by path and by URL."""
    with ObjectStore(folder) as store:
        for kind, target in (("local", (folder / "red.bin").as_posix()), ("http", f"{store.url}/red.bin")):
            references = {"version": 1, "refs": _references(target)}
            (folder / f"{kind}.json").write_text(json.dumps(references))
        path = folder / "catalog.yaml"
        for name in ("v2.zarr", "v3.zarr"):
            add_entry(path, zarr_entry(f"here-{name}", folder / name, catalog=path, description="a store"))
            add_entry(path, zarr_entry(f"there-{name}", f"{store.url}/{name}"))
        for name in ("local.json", "http.json"):
            add_entry(path, kerchunk_entry(name, folder / name, catalog=path, license="CC0-1.0"))
        yield [intake.open_catalog(path), intake.open_catalog(f"{store.url}/catalog.yaml")]


@pytest.mark.parametrize("over_http", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "here-v2.zarr",
        "here-v3.zarr",
        "there-v2.zarr",
        "there-v3.zarr",
        "local.json",
        "http.json",
    ],
)
def test_intake_opens_entries(opened: list[object], dataset: xr.Dataset, name: str, over_http: bool) -> None:
    catalog = opened[over_http]
    found = catalog[name].to_dask()
    assert found["red"].chunks == ((4, 4), (8,))
    xr.testing.assert_identical(found.compute(), dataset)


def test_intake_shows_what_entries_say(opened: list[object]) -> None:
    for catalog in opened:
        assert len(list(catalog)) == 6
        assert catalog["here-v2.zarr"].description == "a store"
        assert catalog._entries["local.json"].describe()["metadata"] == {"license": "CC0-1.0"}
