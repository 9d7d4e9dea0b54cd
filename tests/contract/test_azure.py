"""Cubes over Azure's own emulator, through obstore and adlfs: pixels, credentials, refusals, and no secret left."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import traceback

import cloudpickle
import numpy as np
import pytest

from cube import build, open_cube
from cube.archive.inputs import find_sources
from cube.engine.cluster import connect
from cube.errors import BuildError, ReadError, SourceChangedError, SourceNotFoundError
from cube.io import stores
from cube.io.trace import trace
from cube.settings import get_settings
from tests import services
from tests.services import NAMES, assert_no_secret, assert_same_pixels, read_first


@pytest.fixture(scope="module")
def azure():
    with services.azurite() as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return services.write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def containers(azure, files):
    """private: nobody; public: everybody reads; listed: everybody reads and lists."""
    for container, public in (("private", None), ("public", "blob"), ("listed", "container")):
        azure.make_container(container, public=public)
        for name in NAMES:
            azure.put(container, f"scenes/{name}", (files / name).read_bytes())
        azure.put(container, "scenes/notes.txt", b"no image")
    return azure


@pytest.fixture
def environ(monkeypatch):
    with services.only_variables(monkeypatch) as set_only:
        yield set_only


@pytest.fixture(params=["obstore", "adlfs"])
def client(request, monkeypatch):
    monkeypatch.setenv("CUBE_AZURE_CLIENT", request.param)
    get_settings.cache_clear()
    yield request.param
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.fixture
def key(containers, environ, client):
    environ(**containers.address, AZURE_STORAGE_ACCOUNT_KEY=containers.key)
    return containers


@pytest.mark.parametrize(
    ("what", "wanted"),
    [
        ("scenes/*.tif", NAMES),
        ("scenes/", NAMES),
        ("scenes", NAMES),
        ("", NAMES),
        ("**/*_nir.tif", NAMES[::2]),
        ("scenes/scene_2024010[12]_red.tif", NAMES[1::2]),
        ("scenes/scene_2024010?_red.*", NAMES[1::2]),
    ],
)
def test_what_names_objects_of_a_container(key, what, wanted):
    found = find_sources(f"az://listed/{what}", None)
    assert [source.href for source in found] == [f"az://listed/scenes/{name}" for name in wanted]


@pytest.mark.parametrize("what", ["*.tif", "scenes/*/*.tif", "nothing/", "scenes/*.TIF"])
def test_what_names_nothing_is_told(key, what):
    with pytest.raises(BuildError, match=r"no object matches|holds no \.tif or \.tiff object"):
        find_sources(f"az://listed/{what}", None)


def test_a_cube_of_a_container_is_that_of_the_files(key, files, tmp_path):
    cube = build("az://private/scenes/*.tif", to=tmp_path / "there.cube")
    assert_same_pixels(cube, files, tmp_path)


def test_the_url_may_name_the_account(containers, environ, client, files):
    place = {"AZURE_STORAGE_ENDPOINT": containers.endpoint}
    environ(**place, AZURE_STORAGE_ACCOUNT_KEY=containers.key)
    assert read_first(f"abfss://private@{containers.account}/scenes/{NAMES[0]}") == (files / NAMES[0]).read_bytes()[:16]


def test_a_connection_string_says_it_all(containers, environ, client, files, tmp_path):
    environ(
        AZURE_STORAGE_CONNECTION_STRING=containers.connection_string,
        AZURE_STORAGE_SAS_TOKEN="sv=1&sig=of-another",
        AZURE_STORAGE_ACCOUNT_NAME="another",
    )
    assert_same_pixels(build("az://private/scenes/*.tif", to=tmp_path / "there.cube"), files, tmp_path)


@pytest.mark.parametrize("form", ["?{}", "{}"])
def test_a_sas_token_that_reads_and_lists(containers, environ, client, files, tmp_path, form):
    environ(**containers.address, AZURE_STORAGE_SAS_TOKEN=form.format(containers.sas("private", "rl")))
    assert_same_pixels(build("az://private/scenes/*.tif", to=tmp_path / "there.cube"), files, tmp_path)


def test_a_sas_token_that_only_reads_takes_urls_and_no_glob(containers, environ, client, files, tmp_path):
    environ(**containers.address, AZURE_STORAGE_SAS_TOKEN=containers.sas("private", "r"))
    assert_same_pixels(
        build([f"az://private/scenes/{name}" for name in NAMES], to=tmp_path / "there.cube"), files, tmp_path
    )
    with pytest.raises(ReadError, match=r"could not be listed.* gives the rights 'r', where .* listing 'l'"):
        build("az://private/scenes/*.tif", to=tmp_path / "other.cube")


@pytest.mark.parametrize(
    ("rights", "hours", "message"),
    [
        ("r", -1, r"access denied \(403\).* the SAS token of AZURE_STORAGE_SAS_TOKEN expired at 20\d\d-.*'private'"),
        ("w", 1, r"access denied \(403\).* gives the rights 'w', where reading needs 'r'"),
    ],
)
def test_a_sas_token_that_does_not_read_says_why(containers, environ, client, rights, hours, message):
    token = containers.sas("private", rights, hours=hours)
    environ(**containers.address, AZURE_STORAGE_SAS_TOKEN=token)
    with pytest.raises(ReadError, match=message) as caught:
        read_first(f"az://private/scenes/{NAMES[0]}")
    assert_no_secret(str(caught.value), token)


def test_a_wrong_key_is_named(containers, environ, client):
    environ(**containers.address, AZURE_STORAGE_ACCOUNT_KEY=f"AAAA{containers.key[4:]}")
    message = rf"access denied \(403\).* AZURE_STORAGE_ACCOUNT_KEY holds no key of the account '{containers.account}'"
    with pytest.raises(ReadError, match=message):
        read_first(f"az://private/scenes/{NAMES[0]}")


def test_without_credentials_the_error_says_what_to_set_and_setting_it_is_enough(
    containers, environ, client, monkeypatch
):
    environ(**containers.address)
    href = f"az://private/scenes/{NAMES[0]}"
    message = r"access denied \(403\).* not signed, as no credentials are set.* set AZURE_STORAGE_ACCOUNT_KEY, AZURE_"
    for _ in range(2):
        with pytest.raises(ReadError, match=message):
            read_first(href)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", containers.key)  # as in a notebook: nothing is restarted
    assert len(read_first(href)) == 16
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "another")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1/another")
    monkeypatch.setenv("CUBE_ATTEMPTS", "1")
    get_settings.cache_clear()
    with pytest.raises(ReadError, match=r"could not be read: .*(refused|Cannot connect)"):
        read_first(href)


def test_public_data_needs_no_more_than_its_address(containers, environ, client, files, tmp_path):
    environ(**containers.address)
    assert_same_pixels(build("az://listed/scenes/*.tif", to=tmp_path / "listed.cube"), files, tmp_path)
    hrefs = [f"az://public/scenes/{name}" for name in NAMES]
    assert_same_pixels(build(hrefs, to=tmp_path / "public.cube"), files, tmp_path)
    with pytest.raises(ReadError, match=r"could not be listed.* not signed, as no credentials are set"):
        build("az://public/scenes/*.tif", to=tmp_path / "other.cube")


def test_wrong_credentials_can_be_left_aside(containers, environ, client):
    environ(**containers.address, AZURE_STORAGE_ACCOUNT_KEY="bm9uZQ==", AZURE_SKIP_SIGNATURE="true")
    assert len(read_first(f"az://public/scenes/{NAMES[0]}")) == 16


def test_the_key_of_an_account_is_not_used_for_another(containers, environ, client):
    environ(**containers.address, AZURE_STORAGE_ACCOUNT_KEY=containers.key)
    store, _ = stores.locate("abfss://c@other.dfs.core.windows.net/a.tif")
    assert store.host == "https://other.blob.core.windows.net"
    access = store._bucket._access
    assert access.signer is access.key is access.sas is None
    assert access.kept_from == containers.account


def test_what_is_not_there_is_told_apart(key):
    with pytest.raises(SourceNotFoundError, match=r"there is no such object \(404\)$"):
        read_first("az://private/scenes/nothing.tif")
    message = rf"there is no such object \(404\); there is no container 'nothing' in the account '{key.account}'"
    with pytest.raises(SourceNotFoundError, match=message):
        read_first("az://nothing/a.tif")


def test_who_may_not_know_is_not_told_that_it_is_absent(containers, environ, client):
    environ(**containers.address)
    with pytest.raises(ReadError, match="not signed, as no credentials are set") as caught:
        read_first("az://nothing/a.tif")
    assert not isinstance(caught.value, SourceNotFoundError)


def test_a_blob_that_was_replaced_is_noticed(key, files, tmp_path):
    key.put("private", "replaced/a.tif", (files / NAMES[0]).read_bytes())
    ds = open_cube(build("az://private/replaced/a.tif", to=tmp_path / "a.cube"))
    (band,) = ds.data_vars
    key.put("private", "replaced/a.tif", (files / NAMES[0]).read_bytes())
    with pytest.raises(SourceChangedError, match=r"az://private/replaced/a\.tif: .*changed since it was scanned"):
        ds[band].compute()


def test_the_manifest_may_lie_there_too(key, files, tmp_path):
    build("az://private/scenes/", to=tmp_path / "there.cube")
    for path in (tmp_path / "there.cube").iterdir():
        key.put("private", f"cubes/there.cube/{path.name}", path.read_bytes())
    assert_same_pixels("az://private/cubes/there.cube", files, tmp_path)


def test_names_that_urls_write_otherwise(key, files, tmp_path):
    names = ["a b.tif", "ä.tif", "50%.tif", "a#b.tif", "what?.tif"]
    for name in names:
        key.put("private", f"odd/{name}", (files / NAMES[0]).read_bytes())
    found = find_sources("az://private/odd/*.tif", None)
    assert [source.href.rpartition("/")[2] for source in found] == [
        "50%25.tif", "a b.tif", "a%23b.tif", "what%3F.tif", "ä.tif",
    ]  # fmt: skip
    for source in found:
        assert read_first(source.href) == (files / NAMES[0]).read_bytes()[:16]


def test_nothing_says_which_account(environ, client):
    environ()
    with pytest.raises(
        ReadError, match=r"whose container 'private' is: set AZURE_STORAGE_ACCOUNT_NAME, or write abfss://private@A"
    ):
        read_first("az://private/a.tif")


def test_an_account_that_is_not_there_is_told(environ, client):
    environ(AZURE_STORAGE_ACCOUNT_NAME="nobody", AZURE_STORAGE_ENDPOINT="http://nobody.invalid")
    with pytest.raises(ReadError, match="check that there is an account 'nobody'"):
        read_first("az://private/a.tif")


@pytest.mark.parametrize("secret", ["key", "sas"])
def test_credentials_stay_where_they_are(containers, environ, client, files, tmp_path, caplog, secret):
    token = containers.sas("private", "rl")
    value, name = (
        (containers.key, "AZURE_STORAGE_ACCOUNT_KEY") if secret == "key" else (token, "AZURE_STORAGE_SAS_TOKEN")
    )
    environ(**containers.address, **{name: value})
    caplog.set_level(logging.DEBUG)
    with trace() as seen:
        manifest = build("az://private/scenes/*.tif", to=tmp_path / "there.cube")
        ds = open_cube(manifest, chunks={"y": 48})
        ds.compute()
    assert_no_secret(repr(seen.records), value)
    assert_no_secret(caplog.text, value)
    for path in (tmp_path / "there.cube").iterdir():
        assert_no_secret(path.read_bytes(), value)
    for each in (ds, open_cube(manifest, chunks=None), dict(ds.__dask_graph__()), ds.red.data):
        assert_no_secret(cloudpickle.dumps(each), value)
        assert_no_secret(repr(each), value)
    assert_no_secret(repr(manifest) + ds._repr_html_(), value)
    store, _ = stores.locate(f"az://private/{NAMES[0]}")
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(store)
    for each in (store, store._bucket, store._bucket._access, vars(store._bucket)):
        assert_no_secret(repr(each), value)
    with pytest.raises(SourceNotFoundError) as caught:
        read_first("az://private/nothing.tif")
    assert_no_secret("".join(traceback.format_exception(caught.value)), value)


@pytest.mark.slow
def test_workers_read_with_the_variables_that_they_were_started_with(containers, environ, files, tmp_path):
    environ(**containers.address, AZURE_STORAGE_ACCOUNT_KEY=containers.key)
    manifest = build("az://private/scenes/*.tif", to=tmp_path / "there.cube")
    ds = open_cube(manifest, chunks={"time": 1}, mask_and_scale=False)
    local = open_cube(build(files, to=tmp_path / "local.cube"), mask_and_scale=False)
    with connect("local"):
        np.testing.assert_array_equal(ds.red.compute().values, local.red.values)


READ_AND_LEAVE = """
import sys
from cube.io import loop
from cube.io.ranges import read_head
print(len(loop.run(read_head(sys.argv[1], 16)).data))
"""


def test_a_process_that_has_read_ends_in_order(key):
    run = [sys.executable, "-W", "error", "-c", READ_AND_LEAVE, f"az://private/scenes/{NAMES[0]}"]
    ended = subprocess.run(run, cwd=services.ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "16\n", "")
