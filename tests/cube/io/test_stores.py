from __future__ import annotations

import sys
from pathlib import Path

import pytest
from obstore.store import HTTPStore, LocalStore

from cube.errors import ReadError, SourceNotFoundError
from cube.io.stores import absolute, is_url, join, local_path, locate, redact, sign


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a.tif", True),
        ("az://container/a.tif", True),
        ("file:///data/a.tif", True),
        ("/data/a.tif", False),
        ("a.tif", False),
        ("C:\\data\\a.tif", False),
        ("C:/data/a.tif", False),
        ("c://data/a.tif", False),
        ("", False),
    ],
)
def test_what_is_a_url(text, expected):
    assert is_url(text) is expected


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("/data/a.tif", Path("/data/a.tif")),
        ("file:///data/a%20b.tif", Path("/data/a b.tif")),
        ("file:///data/a%2520b.tif", Path("/data/a%20b.tif")),
        ("/data/a%20b.tif", Path("/data/a%20b.tif")),
        ("https://host/a.tif", None),
    ],
)
def test_what_is_local(href, expected):
    assert local_path(href) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows makes no links for ordinary users")
def test_a_path_is_made_absolute_and_keeps_its_links(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert absolute("link/../link/a.tif") == (tmp_path / "link" / "a.tif").as_posix()
    assert absolute((tmp_path / "a b.tif").as_uri()) == (tmp_path / "a b.tif").as_posix()
    assert absolute("~/a.tif") == (Path.home() / "a.tif").as_posix()
    assert absolute("https://host/a/../b.tif") == "https://host/a/../b.tif"


@pytest.mark.parametrize(
    ("base", "name", "expected"),
    [
        ("/data/s.cube", "manifest.json", "/data/s.cube/manifest.json"),
        ("/data/s.cube/", "a/b.tif", "/data/s.cube/a/b.tif"),
        ("https://host/s.cube", "manifest.json", "https://host/s.cube/manifest.json"),
        ("https://host/s.cube/?sig=1&x=2", "a.json", "https://host/s.cube/a.json?sig=1&x=2"),
        ("/data", "https://host/a.tif", "https://host/a.tif"),
        ("https://host/s", "https://other/a.tif?v=2", "https://other/a.tif?v=2"),
    ],
)
def test_names_below_a_folder(base, name, expected):
    assert join(base, name) == expected


def test_an_absolute_name_stands(tmp_path):
    assert join("/data", tmp_path.as_posix()) == tmp_path.as_posix()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a.tif?sig=secret", "https://host/a.tif?…"),
        ("GET https://host/a?sig=secret failed, twice", "GET https://host/a?… failed, twice"),
        ('url: "https://host/a?sig=secret"', 'url: "https://host/a?…"'),
        ("https://me:secret@host/a?b", "https://…@host/a?…"),
        ("ftp://me:sec@ret@host/a", "ftp://…@host/a"),
        ("nothing to hide", "nothing to hide"),
        ("what?", "what?"),
        ("https://host/a@b.tif", "https://host/a@b.tif"),
    ],
)
def test_secrets_are_taken_out(text, expected):
    assert redact(text) == expected


def test_one_store_a_host_and_a_folder(tmp_path):
    first, path = locate("https://host/deep/a%20b.tif")
    assert isinstance(first, HTTPStore)
    assert path == "deep/a b.tif"
    assert locate("https://host/c.tif")[0] is first
    assert locate("https://other/c.tif")[0] is not first
    assert locate("http://host/c.tif")[0] is not first
    local, name = locate((tmp_path / "a.tif").as_posix())
    assert isinstance(local, LocalStore)
    assert name == "a.tif"
    assert locate((tmp_path / "b.tif").as_uri()) == (local, "b.tif")


def test_another_signature_is_another_store():
    plain, signed = locate("https://host/a")[0], locate("https://host/a?sig=1")[0]
    assert plain is not signed
    assert locate("https://host/b?sig=1")[0] is signed


def test_buckets_need_no_network_to_be_found(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert locate("s3://bucket/deep/a.tif")[1] == "deep/a.tif"
    assert locate("gs://bucket/a.tif")[1] == "a.tif"
    for scheme in ("az", "abfs", "abfss"):
        assert locate(f"{scheme}://container-{scheme}/a.tif")[1] == "a.tif"


@pytest.mark.parametrize(
    ("href", "message"),
    [
        ("ftp://host/a.tif", r"ftp://host/a\.tif: no store reads ftp:// URLs; use a path, http\(s\)://, az://"),
        ("http://host:99999/a?sig=secret", r"http://host:99999/a\?…: its store cannot be opened: invalid port"),
        ("http:///a.tif", "its store cannot be opened: empty host"),
        ("http://[::1/a.tif", "its store cannot be opened: Invalid IPv6 URL"),
    ],
)
def test_urls_that_no_store_takes_are_told(href, message):
    with pytest.raises(ReadError, match=message):
        locate(href)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"nothing/a\.tif: there is no such folder"):
        locate((tmp_path / "nothing" / "a.tif").as_posix())


def test_signing():
    assert sign("https://host/a", None) is None
    assert sign("https://host/a", lambda href: href + "?sig=1") == "https://host/a?sig=1"

    def fail(href):
        raise KeyError(f"{href}?sig=secret")

    with pytest.raises(ReadError, match=r"https://host/a: patch_url failed with KeyError") as caught:
        sign("https://host/a", fail)
    assert "secret" not in str(caught.value)
