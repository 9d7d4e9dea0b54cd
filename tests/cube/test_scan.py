"""`cube.scan`: many headers, in few requests, and what cannot be read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cube.errors import NotTiffError, SourceNotFoundError
from cube.scan import scan_sources
from cube.settings import get_settings
from cube.source import Source
from cube.testing import ObjectStore, write_cog


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for i in range(6):
        write_cog(folder / f"{i}.tif", np.full((300 + i, 300), i, "u2"), nodata=0, blocksize=128)
    (folder / "none.tif").write_bytes(b"\x89PNG" + bytes(100))
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[ObjectStore]:
    with ObjectStore(folder) as running:
        yield running


def sources(store: ObjectStore, *names: str) -> list[Source]:
    return [Source(href=f"{store.url}/{name}", item=name) for name in names]


def test_a_header_is_one_request(store: ObjectStore) -> None:
    done: list[tuple[int, int]] = []
    names = [f"{i}.tif" for i in range(6)]
    scanned, errors = scan_sources(sources(store, *names), progress=lambda *step: done.append(step))
    assert not errors
    assert [each.source.item for each in scanned] == names
    assert [each.header.levels[0].height for each in scanned] == [300, 301, 302, 303, 304, 305]
    assert done == [(i + 1, 6) for i in range(6)]
    assert store.counts().requests == 6


def test_what_cannot_be_read_is_an_error_and_the_rest_is_read(store: ObjectStore) -> None:
    scanned, errors = scan_sources(sources(store, "0.tif", "none.tif", "absent.tif", "1.tif"))
    assert [each.source.item for each in scanned] == ["0.tif", "1.tif"]
    assert [type(error) for error in errors] == [NotTiffError, SourceNotFoundError]
    assert [error.href for error in errors] == [f"{store.url}/none.tif", f"{store.url}/absent.tif"]


def test_headers_at_the_end_of_a_file_take_two_requests(store: ObjectStore, folder: Path) -> None:
    data = (folder / "0.tif").read_bytes()
    gap = 200_000
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    moved = data[: start + 2 + 12 * count] + bytes(4)  # the first directory without its overviews
    table = moved[start:]
    (folder / "end.tif").write_bytes(data[:4] + struct.pack("<I", len(data) + gap) + data[8:] + bytes(gap) + table)
    scanned, errors = scan_sources(sources(store, "end.tif"))
    assert not errors
    assert len(scanned[0].header.levels) == 1
    assert store.counts().requests == 2


def chained(path: Path, images: int) -> None:
    """Write directories that lie 100 kB apart, each naming the next."""
    entries = [
        (256, 4, 1, 8),
        (257, 4, 1, 8),
        (258, 3, 1, 8),
        (322, 4, 1, 8),
        (323, 4, 1, 8),
        (324, 4, 1, 8),
        (325, 4, 1, 64),
    ]
    out = bytearray(b"II*\0" + struct.pack("<I", 16) + bytes(8))
    for number in range(images):
        following = 16 + (number + 1) * 100_000 if number + 1 < images else 0
        rows = [(254, 4, 1, 2 if number else 0), *entries]
        table = struct.pack("<H", len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows)
        out += (table + struct.pack("<I", following)).ljust(100_000, b"\0")
    path.write_bytes(out)


def test_directories_that_follow_from_one_another_are_followed_so_far(store: ObjectStore, folder: Path) -> None:
    chained(folder / "short.tif", 5)
    chained(folder / "long.tif", 40)
    scanned, errors = scan_sources(sources(store, "short.tif", "long.tif"))
    assert [each.source.item for each in scanned] == ["short.tif"]
    assert scanned[0].header.needs_gdal is None
    assert "scattered over more than 16 places" in errors[0].reason


def test_headers_of_many_bytes_are_refused(store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(256, 4, 1, 2**20), (257, 4, 1, 2**10), (258, 3, 1, 8), (259, 3, 1, 8), (322, 4, 1, 16), (323, 4, 1, 16)]
    entries += [(324, 4, 2**22, 100_000), (325, 4, 2**22, 100_000)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    with (folder / "many.tif").open("wb") as file:
        file.write(b"II*\0" + struct.pack("<I", 8) + table)
        file.truncate(2**25)
    monkeypatch.setenv("CUBE_MAX_HEADER_BYTES", str(2**20))
    get_settings.cache_clear()
    try:
        _, errors = scan_sources(sources(store, "many.tif"))
    finally:
        monkeypatch.undo()
        get_settings.cache_clear()
    assert errors[0].reason == "its header takes more than 1048576 bytes (CUBE_MAX_HEADER_BYTES)"
    assert store.counts().bytes == 32 * 1024


def test_urls_are_signed_and_nothing_says_so(store: ObjectStore) -> None:
    wanted = sources(store, "0.tif", "absent.tif")
    scanned, errors = scan_sources(wanted, patch_url=lambda href: f"{href}?secret=1")
    assert scanned[0].source.href == wanted[0].href
    assert "secret" not in str(errors[0])


def test_no_sources_are_no_headers() -> None:
    assert scan_sources([]) == ([], [])
