from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

import pytest

from cube.errors import ReadError, SourceNotFoundError
from cube.io import loop
from cube.io.answer import RefusedError
from cube.io.stores import absolute, is_url, join, local_path, locate, redact, sign
from cube.settings import get_settings
from tests.services import answering, only_variables


@pytest.fixture
def environ(monkeypatch):
    with only_variables(monkeypatch) as set_only:
        yield set_only


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
        (
            "abfss://container@account.dfs.core.windows.net/a?sig=1",
            "abfss://container@account.dfs.core.windows.net/a?…",
        ),
    ],
)
def test_secrets_are_taken_out(text, expected):
    assert redact(text) == expected


def test_one_store_a_host_and_a_folder(tmp_path):
    first, path = locate("https://host/deep/a%20b.tif?sig=1")
    assert first.host == "https://host"
    assert path == "https://host/deep/a%20b.tif?sig=1"
    assert locate("https://host/c.tif")[0] is first
    assert locate("https://other/c.tif")[0] is not first
    assert locate("http://host/c.tif")[0] is not first
    local, name = locate((tmp_path / "a.tif").as_posix())
    assert (local.host, name) == ("file://", "a.tif")
    assert locate((tmp_path / "b.tif").as_uri()) == (local, "b.tif")


def test_buckets_need_no_network_to_be_found(environ):
    environ(AZURE_STORAGE_ACCOUNT_NAME="account")
    for scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"):
        store, path = locate(f"{scheme}://bucket/deep/a%20b.tif")
        assert path == "deep/a b.tif"
        assert locate(f"{scheme}://bucket/c.tif")[0] is store
        assert locate(f"{scheme}://other/c.tif")[0] is not store
    assert locate("s3://bucket/a")[0].host == "s3://bucket"
    assert locate("az://bucket/a")[0].host == "https://account.blob.core.windows.net"


def test_another_account_is_another_store(environ):
    environ(AZURE_STORAGE_ACCOUNT_NAME="one")
    first = locate("az://container/a")[0]
    environ(AZURE_STORAGE_ACCOUNT_NAME="two")
    assert locate("az://container/a")[0].host == "https://two.blob.core.windows.net"
    assert first.host == "https://one.blob.core.windows.net"
    assert locate("abfss://container@one.dfs.core.windows.net/a")[0].host == first.host


@pytest.mark.parametrize("client", ["obstore", "adlfs"])
def test_who_is_refused_is_asked_for_again_when_the_environment_changed(environ, monkeypatch, client):
    monkeypatch.setenv("CUBE_AZURE_CLIENT", client)
    get_settings.cache_clear()
    with answering(403) as (url, asked):
        environ(AZURE_STORAGE_ACCOUNT_NAME="account", AZURE_STORAGE_ENDPOINT=url)
        store, path = locate("az://container/a")

        def get():
            with pytest.raises(RefusedError):
                loop.run(store.get(path, 0, 10))
            sent = ["Authorization" in headers or "authorization" in headers for headers in asked]
            asked.clear()
            return sent

        assert get() == [False]
        assert get() == [False]
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0")
        assert get() == [False, True]
        assert get() == [True]
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0Mg==")
        # All that were under way when the key was changed are asked for again, not the first one only.
        asked.clear()

        async def several():
            return await asyncio.gather(*(store.get(path, 0, 10) for _ in range(4)), return_exceptions=True)

        assert [type(each) for each in loop.run(several())] == [RefusedError] * 4
        assert len(asked) > 5  # one that begins late is asked for as the new one at once
    monkeypatch.undo()
    get_settings.cache_clear()


def test_stores_are_never_pickled(environ, tmp_path):
    environ()
    for href in ("s3://bucket/a", "abfss://c@account/a", (tmp_path / "a").as_posix()):
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(locate(href)[0])


@pytest.mark.parametrize(
    ("href", "message"),
    [
        ("ftp://host/a.tif", r"ftp://host/a\.tif: no store reads ftp:// URLs; use a path, http\(s\)://, az://"),
        ("http://host:99999/a?sig=secret", r"http://host:99999/a\?…: its store cannot be opened: Port out of range"),
        ("http:///a.tif", "its store cannot be opened: empty host"),
        ("http://[::1/a.tif", "its store cannot be opened: Invalid IPv6 URL"),
        ("s3://[::1/a.tif", "its store cannot be opened: Invalid IPv6 URL"),
        ("s3:///a.tif", r"its store cannot be opened: write it as s3://bucket/folder/name\.tif"),
        ("az://c@some.example/a.tif", "its store cannot be opened: 'some.example' is no storage account"),
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
