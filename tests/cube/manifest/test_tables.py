from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.errors import ManifestError
from cube.manifest import tables
from cube.manifest.facts import ImageGroup
from cube.manifest.schema import IMAGE_COLUMNS, TILE_SCHEMA, number_from_text, number_text
from cube.manifest.tables import LazyRows, Part, PartFile, integers
from cube.testing import ObjectStore

GROUP, GROUPS, TILES = 100, 20, 8


@pytest.fixture
def path(tmp_path):
    """A tiles table of 20 row groups, each of more than a page, whose rows all differ."""
    count = GROUP * GROUPS
    columns = {name: np.full(count, 64) for name in TILE_SCHEMA.names[:8]}
    columns["width"] = np.full(count, 64 * TILES)
    columns |= {"strips": [False] * count, "bits": [0] * count, "tables": pa.nulls(count, pa.binary())}
    rng = np.random.default_rng(0)
    for name in ("offsets", "lengths"):
        columns[name] = pa.ListArray.from_arrays(
            np.arange(count + 1, dtype="int32") * TILES, rng.integers(0, 2**40, count * TILES)
        )
    path = tmp_path / "tiles.parquet"
    pq.write_table(pa.table(columns, schema=TILE_SCHEMA), path, row_group_size=GROUP)
    return path


@pytest.fixture
def expected(path):
    return pq.read_table(path)["offsets"].combine_chunks().flatten().to_pylist()[::TILES]


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    """Nothing decoded yet, and footers that are not all of a small file."""
    monkeypatch.setattr(tables, "_kept", tables._Kept(2**20))
    monkeypatch.setattr(tables, "_TAIL_BYTES", 64 * 1024)


def lazy(href, nbytes=None):
    return LazyRows(PartFile(str(href), nbytes), IMAGE_COLUMNS, ImageGroup)


def offset(rows, row):
    return int(rows.find(row).offsets[0, 0, 0])


def test_any_row_is_found(path, expected):
    rows = lazy(path)
    order = np.random.default_rng(1).permutation(len(expected)).tolist()
    assert [offset(rows, row) for row in order] == [expected[row] for row in order]


@pytest.mark.parametrize("step", [1, 3, 7, 99, 1000])
def test_rows_that_were_loaded_are_those_that_are_found(path, expected, step):
    rows = lazy(path)
    wanted = np.arange(0, len(expected), step)
    rows.load(wanted)
    path.unlink()
    path.write_bytes(b"")  # whatever else is needed would fail
    assert [offset(rows, row) for row in wanted.tolist()] == expected[::step]


def test_what_is_kept_is_bounded(path, expected, monkeypatch):
    rows = lazy(path)
    rows.find(0)
    (_, group), *_ = tables._kept._values.values()
    monkeypatch.setattr(tables, "_kept", tables._Kept(3 * group))
    assert [offset(rows, row) for row in range(len(expected))] == expected
    assert len(tables._kept._values) == 3
    rows.load(np.arange(0, len(expected), 50))
    assert tables._kept._bytes == sum(nbytes for _, nbytes in tables._kept._values.values()) <= 3 * group


def test_threads_that_want_the_same_rows_read_them_once(path, expected):
    rows = lazy(path)
    decoded, decode = [], rows._decode
    rows._decode = lambda table: decoded.append(len(table)) or decode(table)
    barrier, found = threading.Barrier(8), []

    def one():
        barrier.wait()
        found.append([offset(rows, row) for row in range(0, len(expected), 10)])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected[::10]] * 8
    assert decoded == [GROUP] * GROUPS


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
def test_a_remote_file_is_asked_for_what_is_needed(path, expected, known):
    size = path.stat().st_size
    assert size > 2 * tables._TAIL_BYTES
    with ObjectStore(path.parent) as store:
        href = f"{store.url}/{path.name}"
        rows = lazy(href, size if known else None)
        assert offset(rows, 505) == expected[505]
        # The footer (after a look at the size), and the row group.
        assert store.counts().requests == (2 if known else 3)
        assert offset(rows, 506) == expected[506]
        assert store.counts().requests == (2 if known else 3)
        assert store.counts().bytes < size
        store.reset()
        some = np.arange(GROUP, len(expected), GROUP // 2)
        rows.load(some)
        assert store.counts().requests == 1, "all row groups in one, since they lie side by side"
        assert [offset(rows, row) for row in some.tolist()] == [expected[row] for row in some.tolist()]
        assert store.counts().requests == 1


def test_a_small_remote_file_is_one_request(path, expected, monkeypatch):
    monkeypatch.setattr(tables, "_TAIL_BYTES", 2**20)
    with ObjectStore(path.parent) as store:
        for size in (path.stat().st_size, None):
            store.reset()
            monkeypatch.setattr(tables, "_kept", tables._Kept(2**20))
            rows = lazy(f"{store.url}/{path.name}", size)
            assert [offset(rows, row) for row in range(len(expected))] == expected
            assert store.counts().requests == 1


def test_a_remote_file_that_is_shorter_than_it_was_is_damaged(path):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with ObjectStore(path.parent) as store:
        href = f"{store.url}/{path.name}"
        with pytest.raises(ManifestError, match=rf"{href} of the manifest (cannot be read|is damaged)"):
            lazy(href, size).find(0)


@given(
    values=st.lists(st.none() | st.integers(-(2**31), 2**31 - 1)),
    kind=st.sampled_from([pa.int32(), pa.int64(), pa.timestamp("us", "UTC")]),
    start=st.integers(0, 5),
)
def test_integers_are_the_values_with_nulls_replaced(values, kind, start):
    column = pa.chunked_array([pa.array(values, pa.int64()).cast(kind, safe=False).slice(start), pa.array([], kind)])
    assert integers(column, null=-7).tolist() == [-7 if value is None else value for value in values[start:]]


@given(values=st.lists(st.none() | st.booleans()))
def test_booleans_are_integers(values):
    assert integers(pa.array(values, pa.bool_())).tolist() == [int(value or False) for value in values]


@given(st.integers() | st.floats())
def test_numbers_survive_as_text(value):
    again = number_from_text(number_text(value))
    assert type(again) is type(value)
    assert repr(again) == repr(value)


def test_numbers_of_numpy_are_written_like_others():
    assert number_text(np.float32(0.5)) == "0.5"
    assert number_text(np.uint8(7)) == "7"
    assert number_text(None) is None


def test_a_part_survives_as_json():
    part = Part(
        sources="s", tiles="t", rows=5, sources_bytes=1, tiles_bytes=2, offsets=((3, 0), (0, 7)), removed=(0, 4)
    )
    assert Part.from_json(json.loads(json.dumps(part.to_json()))) == part
    assert part.kept.tolist() == [1, 2, 3]


def test_a_part_of_an_older_schema_is_on_the_first_grid():
    old = {"sources": "s", "tiles": "t", "rows": 5, "sources_bytes": 1, "tiles_bytes": 2}
    part = Part.from_json({**old, "row_offset": 3, "column_offset": 4, "removed": [0, 4]})
    assert part == Part(
        sources="s", tiles="t", rows=5, sources_bytes=1, tiles_bytes=2, offsets=((3, 4),), removed=(0, 4)
    )
    oldest = Part.from_json({"sources": "s", "tiles": "t", "rows": 5})
    assert oldest == replace(part, sources_bytes=None, tiles_bytes=None, offsets=((0, 0),), removed=())


def test_sources_are_shifted_by_what_their_own_grid_has_grown():
    part = Part(sources="s", tiles="t", rows=4, offsets=((3, 0), (0, 7)))
    rows, columns = part.shifts(np.array([1, 0, 2, 1]))
    assert (rows.tolist(), columns.tolist()) == ([0, 3, 0, 0], [7, 0, 0, 7])
    rows, columns = replace(part, offsets=()).shifts(np.array([1, 0]))
    assert (rows.tolist(), columns.tolist()) == ([0, 0], [0, 0])
    rows, columns = part.shifts(np.array([-1, 2**31 - 1, 0]))
    assert (rows.tolist(), columns.tolist()) == ([0, 0, 3], [0, 0, 0]), "whatever a damaged file says"
    rows, columns = part.shifts(np.array([], "int64"))
    assert (rows.tolist(), columns.tolist()) == ([], [])
