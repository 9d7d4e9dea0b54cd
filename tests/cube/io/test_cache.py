"""The cache of tiles: what it keeps is what was put, it stays within its limit, and no kill or damage shows."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cube.io.cache import CacheWarning, TileCache, open_cache, source_key
from cube.io.ranges import ObjectVersion
from cube.settings import get_settings

WHEN = datetime(2024, 5, 1, 10, tzinfo=UTC)
HREF = "https://store.example/scene.tif"
KIB = 1024


def version(etag="abc", size=10_000, last_modified=WHEN):
    return ObjectVersion(size=size, etag=etag, last_modified=last_modified)


def key(href=HREF, **of):
    found = source_key(href, version(**of))
    assert found is not None
    return found


def tile(number, length=1000):
    return random.Random(number).randbytes(length)


def entries(cache):
    return [path for path in cache.folder.glob("??/*") if not path.name.startswith(".")]


def size_on_disk(cache):
    return sum(path.stat().st_size for path in cache.folder.glob("??/*"))


@pytest.fixture
def cache(tmp_path):
    return TileCache(tmp_path / "cache" / "tiles", 1000 * KIB)


@given(st.dictionaries(st.tuples(st.integers(0, 2**63), st.integers(1, 50)), st.randoms(), max_size=20))
def test_what_was_put_is_found_and_nothing_else(tmp_path_factory, made):
    cache = TileCache(tmp_path_factory.mktemp("cache") / "tiles", 1000 * KIB)
    tiles = {piece: random.randbytes(piece[1]) for piece, random in made.items()}
    cache.put(key(), tiles)
    found = cache.find(key(), [*tiles, (7, 51)])
    assert {piece: bytes(data) for piece, data in found.items()} == tiles
    assert cache.find(key(etag="other"), tiles) == {}


def test_a_tile_is_of_one_version_of_one_object(cache):
    piece = (100, 1000)
    cache.put(key(), {piece: tile(1)})
    others = [
        key("https://store.example/other.tif"),
        key(etag="abd"),
        key(size=10_001),
        key(etag=None),
        key(last_modified=datetime(2024, 5, 2, tzinfo=UTC)),
    ]
    assert [cache.find(other, [piece]) for other in others] == [{}] * len(others)
    assert cache.find(key(), [(100, 999), (101, 1000)]) == {}


def test_objects_of_unknown_version_and_local_files_have_no_key():
    assert source_key(HREF, None) is None
    assert source_key(HREF, version(etag=None, last_modified=None)) is None
    assert source_key(HREF, version(etag='W/"abc"', last_modified=None)) is None
    assert source_key("/data/scene.tif", version()) is None
    assert source_key("file:///data/scene.tif", version()) is None
    # A weak ETag says nothing of the bytes: the time does.
    assert source_key(HREF, version(etag='W/"abc"')) == source_key(HREF, version(etag=None))


def test_names_and_contents_tell_nothing_and_are_private(cache):
    href = "https://secret-account.example/hidden-name.tif"
    cache.put(key(href), {(0, 1000): tile(1)})
    (path,) = entries(cache)
    everything = b"".join([*map(os.fsencode, cache.folder.rglob("*")), path.read_bytes()])
    assert b"secret" not in everything.replace(os.fsencode(cache.folder.parent), b"")
    assert b"hidden" not in everything
    for each in [cache.folder, *cache.folder.rglob("*")]:
        if sys.platform != "win32" and each.name != ".lock":
            assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0, each


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_folder_that_is_open_to_others_is_not_used(cache):
    cache.put(key(), {(0, 1000): tile(1)})
    cache.folder.chmod(0o777)
    with pytest.warns(CacheWarning, match="open to others"):
        assert cache.find(key(), [(0, 1000)]) == {}
    with pytest.warns(CacheWarning, match="open to others"):
        cache.put(key(), {(1, 1000): tile(2)})


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = TileCache(tmp_path / "file" / "tiles", 1000 * KIB)
    with pytest.warns(CacheWarning, match="cannot be written"):
        cache.put(key(), {(0, 1000): tile(1)})


DAMAGES = {
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "empty": lambda data: data[:0],
    "head only": lambda data: data[:10],
    "one bit": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "other format": lambda data: b"COGTILE0" + data[8:],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_entry_is_a_miss_and_is_deleted(cache, damage):
    cache.put(key(), {(0, 1000): tile(1)})
    (path,) = entries(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.find(key(), [(0, 1000)]) == {}
    assert not path.exists()
    cache.put(key(), {(0, 1000): tile(1)})
    assert bytes(cache.find(key(), [(0, 1000)])[0, 1000]) == tile(1)


def test_an_entry_under_the_name_of_another_is_a_miss(cache):
    cache.put(key(), {(0, 1000): tile(1)})
    (one,) = entries(cache)
    cache.put(key(), {(1, 1000): tile(2)})
    (other,) = set(entries(cache)) - {one}
    other.write_bytes(one.read_bytes())
    found = cache.find(key(), [(0, 1000), (1, 1000)])
    assert set(found) == {(0, 1000)}


def test_a_tile_of_another_length_is_an_error_of_the_caller(cache):
    with pytest.raises(ValueError, match="came with 999 bytes"):
        cache.put(key(), {(0, 1000): tile(1, 999)})


def test_the_least_recently_used_go_first(cache):
    room = 900  # of entries of 1,032 bytes, in 1,000 KiB
    for number in range(0, room, 60):
        cache.put(key(), {(i, 1000): tile(i) for i in range(number, number + 60)})
    kept = [(i, 1000) for i in range(50)]
    assert len(cache.find(key(), kept)) == 50
    cache.put(key(), {(i, 1000): tile(i) for i in range(room, room + 200)})
    assert len(cache.find(key(), kept)) == 50
    assert cache.find(key(), [(i, 1000) for i in range(50, 100)]) == {}
    assert len(cache.find(key(), [(i, 1000) for i in range(room, room + 200)])) == 200


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=120), st.integers(500, 40_000))
def test_the_limit_holds_after_each_write(tmp_path_factory, lengths, max_bytes):
    cache = TileCache(tmp_path_factory.mktemp("cache") / "tiles", max_bytes)
    for number, length in enumerate(lengths):
        cache.put(key(), {(number, length): bytes(length)})
        assert size_on_disk(cache) <= max_bytes
    assert cache.use().bytes == size_on_disk(cache)


def test_a_lower_limit_is_reached_with_the_next_write(cache):
    for number in range(0, 800, 50):
        cache.put(key(), {(i, 1000): tile(i) for i in range(number, number + 50)})
    smaller = TileCache(cache.folder, 100 * KIB)
    smaller.put(key(), {(5000, 1000): tile(1)})
    assert size_on_disk(smaller) <= 100 * KIB
    assert (5000, 1000) in smaller.find(key(), [(5000, 1000)])


def test_a_lost_or_damaged_count_is_made_anew(cache):
    cache.put(key(), {(i, 1000): tile(i) for i in range(60)})
    for damage in (b"", b"123", None):
        used = cache.folder / ".used"
        used.unlink() if damage is None else used.write_bytes(damage)
        cache.put(key(), {(random.getrandbits(40), 1000): tile(1)})
        assert int.from_bytes(used.read_bytes(), "little") == size_on_disk(cache)


def test_clear_deletes_all_and_says_what(cache):
    assert cache.clear().entries == 0
    cache.put(key(), {(i, 1000): tile(i) for i in range(10)})
    (cache.folder / "ab").mkdir(exist_ok=True)
    (cache.folder / "ab" / ".tmp-1-2-3").write_bytes(b"left by a process that was killed")
    gone = cache.clear()
    assert (gone.entries, gone.bytes) == (10, 10 * 1032)
    assert [*cache.folder.glob("??/*"), *cache.folder.glob("??/.*")] == []
    cache.put(key(), {(0, 1000): tile(0)})
    assert cache.use().entries == 1


def test_the_settings_turn_it_on(monkeypatch, tmp_path):
    monkeypatch.setenv("CUBE_CACHE_DIR", str(tmp_path))
    get_settings.cache_clear()
    assert open_cache() is None
    monkeypatch.setenv("CUBE_CACHE_BYTES", "1000")
    get_settings.cache_clear()
    found = open_cache()
    assert found is not None
    assert (found.folder, found.max_bytes) == (tmp_path / "tiles", 1000)
    monkeypatch.undo()
    get_settings.cache_clear()


# Processes of their own.

WRITER = """
    import random, sys
    from datetime import UTC, datetime
    from pathlib import Path
    from cube.io.cache import TileCache, source_key
    from cube.io.ranges import ObjectVersion

    folder, max_bytes, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    cache = TileCache(folder, max_bytes)
    key = source_key("https://store.example/scene.tif", ObjectVersion(size=1, etag="abc", last_modified=None))
    numbers = random.Random(seed)
    print("ready", flush=True)
    for _ in range(rounds):
        chosen = {(numbers.randrange(2000), 1000) for _ in range(8)}
        found = cache.find(key, chosen)
        for (number, _), data in found.items():
            if bytes(data) != random.Random(number).randbytes(1000):
                sys.exit(f"tile {number} is not what was put")
        cache.put(key, {piece: random.Random(piece[0]).randbytes(1000) for piece in chosen - found.keys()})
    print("done", flush=True)
"""


def start_writer(folder: Path, max_bytes: int, seed: int, rounds: int) -> subprocess.Popen[str]:
    code = textwrap.dedent(WRITER)
    command = [sys.executable, "-c", code, str(folder), str(max_bytes), str(seed), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_share_it_and_stay_within_its_limit(tmp_path):
    cache = TileCache(tmp_path / "tiles", 300 * KIB)
    writers = [start_writer(cache.folder, cache.max_bytes, seed, 100) for seed in range(3)]
    most = 0
    while any(writer.poll() is None for writer in writers):
        # What is here while it is looked at; what goes meanwhile is counted, what comes may be.
        most = max(most, cache.use().bytes)
        time.sleep(0.01)
    for writer in writers:
        out, err = writer.communicate()
        assert writer.returncode == 0, err
        assert out.split() == ["ready", "done"]
        assert "Warning" not in err, err
    assert size_on_disk(cache) <= cache.max_bytes
    assert most <= 1.1 * cache.max_bytes
    assert cache.use().entries > 100


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_at_any_time_it_holds_whole_tiles_only(tmp_path):
    cache = TileCache(tmp_path / "tiles", 300 * KIB)
    for seed in range(6):
        writer = start_writer(cache.folder, cache.max_bytes, seed, 100_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.03 * seed)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        same = source_key(HREF, ObjectVersion(size=1, etag="abc", last_modified=None))
        assert same is not None
        found = cache.find(same, [(number, 1000) for number in range(2000)])
        assert all(bytes(data) == tile(number) for (number, _), data in found.items())
        assert size_on_disk(cache) <= cache.max_bytes
    assert cache.use().entries > 50
    # Nobody is stopped by what they held, and what they left half-written goes.
    (cache.folder / "ab").mkdir(exist_ok=True)
    (cache.folder / "ab" / ".tmp-1-2-3").write_bytes(bytes(200))
    cache.put(key(), {(i, 1000): tile(i) for i in range(400)})
    assert [*cache.folder.glob("??/.tmp-*")] == []
    assert size_on_disk(cache) <= cache.max_bytes


def test_the_command_tells_and_clears(monkeypatch, tmp_path):
    from cube.cli import storage

    app = typer.Typer()
    app.command()(storage.copy)
    app.command()(storage.cache)
    for name, value in (("CUBE_CACHE_DIR", str(tmp_path)), ("CUBE_CACHE_BYTES", "1000000")):
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    cache = open_cache()
    assert cache is not None
    cache.put(key(), {(i, 1000): tile(i) for i in range(10)})
    told = CliRunner().invoke(app, ["cache"])
    assert told.stdout == f"{tmp_path / 'tiles'}: 10 tiles, 10.3 kB (at most 1.0 MB)\n"
    cleared = CliRunner().invoke(app, ["cache", "--clear", "--json"])
    assert json.loads(cleared.stdout) == {
        "folder": str(tmp_path / "tiles"),
        "entries": 10,
        "bytes": 10_320,
        "max_bytes": 1_000_000,
        "cleared": True,
    }
    assert cache.find(key(), [(0, 1000)]) == {}
    monkeypatch.undo()
    get_settings.cache_clear()
