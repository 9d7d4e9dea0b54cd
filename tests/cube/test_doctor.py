"""What `cube doctor` finds, and that it never shows a secret."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cube.doctor import as_json, examine
from cube.errors import SettingsError
from cube.settings import get_settings
from cube.testing import ObjectStore

SECRET = "s3cr3t-Value"


@pytest.fixture
def _fresh_settings() -> Iterator[None]:
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def find(what: str, url: str | None = None) -> tuple[str, bool]:
    """Return one finding and whether it is well."""
    ((finding, well),) = [(finding, well) for each, finding, well in examine(url) if each == what]
    return finding, well


def everything(url: str | None = None) -> str:
    return json.dumps(as_json(examine(url)), ensure_ascii=False)


def test_it_finds_python_the_libraries_and_the_extras() -> None:
    assert find("Python")[1]
    libraries, _ = find("libraries")
    for name in ("xarray", "zarr", "obstore", "imagecodecs", "pyarrow", "rasterio", "odc-geo"):
        assert f"{name} " in libraries
    for extra, library in (("dask", "distributed"), ("server", "xpublish"), ("catalog", "intake")):
        finding, well = find(f"extra {extra}")
        assert library in finding
        assert well


def test_findings_are_json_values() -> None:
    found = json.loads(json.dumps(as_json(examine())))
    assert [each["what"] for each in found] == [what for what, _, _ in examine()]
    assert {type(each["well"]) for each in found} == {bool}


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("AZURE_STORAGE_ACCOUNT_KEY", "Azure"),
        ("AZURE_STORAGE_SAS_KEY", "Azure"),
        ("AZURE_STORAGE_CONNECTION_STRING", "Azure"),
        ("AZURE_CLIENT_ID", "Azure"),
        ("AWS_ACCESS_KEY_ID", "AWS"),
        ("AWS_PROFILE", "AWS"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "Google"),
    ],
)
def test_credentials_are_named_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, cloud: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert f"{name} (set)" in find(f"{cloud} credentials")[0]
    assert SECRET not in everything()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        (f"http://user:{SECRET}@proxy:3128", "http://…@proxy:3128"),
        (f"user:{SECRET}@proxy:3128", "…@proxy:3128"),
        (f"http://user:{SECRET}@{SECRET}://@proxy:3128", "http://…@proxy:3128"),
        (f"user:{SECRET}://x@proxy", "…@proxy"),
    ],
)
def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch, value: str, shown: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    assert f"HTTPS_PROXY={shown}" in find("proxies")[0].split(", ")
    assert SECRET not in everything()


def test_certificates_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/bundle.pem")
    assert "REQUESTS_CA_BUNDLE=/etc/bundle.pem" in find("certificates")[0]


@pytest.mark.usefixtures("_fresh_settings")
def test_settings_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUBE_GAP_BYTES", "1000")
    monkeypatch.setenv("CUBE_CACHE_DIR", str(tmp_path / "not" / "there" / "yet"))
    assert "CUBE_CACHE_DIR, CUBE_GAP_BYTES" in find("settings")[0]
    assert str(tmp_path / "not" / "there" / "yet") in find("disk")[0]
    assert not (tmp_path / "not").exists()


@pytest.mark.usefixtures("_fresh_settings")
def test_a_setting_that_cannot_be_used_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBE_ATTEMPTS", "many")
    with pytest.raises(SettingsError, match="CUBE_ATTEMPTS='many'"):
        examine()


def test_a_port_that_is_taken_is_named_with_a_way_out() -> None:
    with socket.socket() as other:
        with suppress(OSError):  # where it is taken already, that is as well
            other.bind(("127.0.0.1", 9000))
            other.listen()
        finding, well = find("port")
    assert finding.startswith("9000 is taken (")
    assert finding.endswith("use cube serve --port")
    assert not well


@pytest.mark.parametrize("name", ["cube.py", "server.py"])
def test_a_file_that_hides_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert [what for what, _, _ in examine() if what == "folder"] == []
    (tmp_path / name).touch()
    finding, well = find("folder")
    assert str(tmp_path / name) in finding
    assert not well


def test_the_first_byte_of_a_url_is_measured(tmp_path: Path) -> None:
    (tmp_path / "some.tif").write_bytes(os.urandom(5000))
    with ObjectStore(tmp_path) as store:
        url = f"{store.url}/some.tif"
        finding, well = find("first byte", f"{url}?sig={SECRET}")
        counts = store.counts()
    assert well
    assert "median of 4" in finding
    assert f" from {url}?…" in finding
    assert counts.paths == {"some.tif": 5}
    assert {stop - start for _, _, start, stop in counts.ranges} == {1024}


def test_a_far_store_is_told_from_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "some.tif").write_bytes(bytes(2000))
    with ObjectStore(tmp_path, latency_s=0.16) as store:
        finding, well = find("first byte", f"{store.url}/some.tif")
    assert well
    assert "far away: compute near the data" in finding


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("{store}/nope.tif", "there is no such object"),
        ("{store}/nope.tif?sig=" + SECRET, "there is no such object"),
        (f"ftp://user:{SECRET}@host/a.tif", "no store reads ftp:// URLs"),
        ("nope.tif", "nope.tif"),
    ],
)
def test_a_url_that_fails_is_a_finding_without_its_secrets(tmp_path: Path, url: str, why: str) -> None:
    with ObjectStore(tmp_path) as store:
        finding, well = find("first byte", url.format(store=store.url))
    assert not well
    assert why in finding
    assert SECRET not in finding
