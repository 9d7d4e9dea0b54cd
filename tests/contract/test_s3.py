"""Cubes over S3 as moto plays it: pixels, keys that are missing or wrong, replaced objects, and no secret left."""

from __future__ import annotations

import logging
import pickle
import traceback

import cloudpickle
import pytest

from cube import build, open_cube
from cube.archive.inputs import find_sources
from cube.errors import ReadError, SourceChangedError, SourceNotFoundError
from cube.io import stores
from cube.io.trace import trace
from tests import services
from tests.services import NAMES, assert_no_secret, assert_same_pixels, read_first


@pytest.fixture(scope="module")
def s3():
    with services.moto() as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return services.write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def buckets(s3, files):
    for bucket in ("private", "public"):
        s3.make_bucket(bucket)
        for name in NAMES:
            s3.put(bucket, f"scenes/{name}", (files / name).read_bytes(), public=bucket == "public")
    return s3


@pytest.fixture
def environ(monkeypatch):
    with services.only_variables(monkeypatch) as set_only:
        yield set_only


@pytest.fixture
def user(buckets, environ):
    environ(**buckets.address, **buckets.user)
    with buckets.checking_keys():
        yield buckets


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
def test_a_cube_of_a_bucket_is_that_of_the_files(user, files, tmp_path, scheme):
    cube = build(f"{scheme}://private/scenes/*.tif", to=tmp_path / "there.cube")
    assert_same_pixels(cube, files, tmp_path)


def test_a_folder_and_folders_below(user):
    for what in ("scenes/", "scenes", "", "**/*.tif"):
        found = find_sources(f"s3://private/{what}", None)
        assert [source.href for source in found if "/scenes/" in source.href] == [
            f"s3://private/scenes/{name}" for name in NAMES
        ]


def test_the_manifest_may_lie_there_too(user, files, tmp_path):
    build("s3://private/scenes/", to=tmp_path / "there.cube")
    for path in (tmp_path / "there.cube").iterdir():
        user.put("private", f"cubes/there.cube/{path.name}", path.read_bytes())
    assert_same_pixels("s3://private/cubes/there.cube", files, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId: requests are signed by AWS_ACCESS_KEY_ID, which"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch: requests are signed by AWS_ACCESS_KEY_ID, which"),
    ],
)
def test_wrong_keys_are_told(user, environ, wrong, message):
    environ(**user.address, **(user.user | wrong))
    with pytest.raises(ReadError, match=rf"access denied \(403\): {message}"):
        read_first(f"s3://private/scenes/{NAMES[0]}")


def test_half_a_key_is_told(user, environ):
    environ(**user.address, AWS_ACCESS_KEY_ID="somebody")
    with pytest.raises(ReadError, match=r"its store cannot be opened: .*SecretAccessKey"):
        read_first(f"s3://private/scenes/{NAMES[0]}")


def test_without_keys_the_error_says_what_to_set_and_setting_it_is_enough(buckets, environ, monkeypatch):
    environ(**buckets.address)
    href = f"s3://private/scenes/{NAMES[0]}"
    message = r"access denied \(403\): .*not signed, as no credentials are set.* set AWS_ACCESS_KEY_ID and AWS"
    for _ in range(2):
        with pytest.raises(ReadError, match=message):
            read_first(href)
    for name, value in buckets.user.items():
        monkeypatch.setenv(name, value)
    assert len(read_first(href)) == 16


def test_public_data_needs_no_more_than_its_address(buckets, environ, files, tmp_path):
    environ(**buckets.address)
    hrefs = [f"s3://public/scenes/{name}" for name in NAMES]
    assert_same_pixels(build(hrefs, to=tmp_path / "public.cube"), files, tmp_path)


def test_what_is_not_there_is_told_apart(user):
    with pytest.raises(SourceNotFoundError, match=r"there is no such object \(404\)$"):
        read_first("s3://private/nothing.tif")
    with pytest.raises(SourceNotFoundError, match=r"no such object \(404\); there is no bucket 'nothing'"):
        read_first("s3://nothing/a.tif")


def test_an_object_that_was_replaced_is_noticed(user, files, tmp_path):
    user.put("private", "replaced/a.tif", (files / NAMES[0]).read_bytes())
    ds = open_cube(build("s3://private/replaced/a.tif", to=tmp_path / "a.cube"))
    (band,) = ds.data_vars
    user.put("private", "replaced/a.tif", (files / NAMES[1]).read_bytes())
    with pytest.raises(SourceChangedError, match=r"s3://private/replaced/a\.tif: .*changed since it was scanned"):
        ds[band].compute()


def test_credentials_stay_where_they_are(user, files, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with trace() as seen:
        manifest = build("s3://private/scenes/*.tif", to=tmp_path / "there.cube")
        ds = open_cube(manifest, chunks={"y": 128})
        ds.compute()
    store, _ = stores.locate("s3://private/a.tif")
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(store)
    with pytest.raises(SourceNotFoundError) as caught:
        read_first("s3://private/nothing.tif")
    texts = [repr(seen.records), caplog.text, repr(ds), ds._repr_html_(), repr(manifest), repr(vars(store._bucket))]
    texts.append("".join(traceback.format_exception(caught.value)))
    written = [path.read_bytes() for path in (tmp_path / "there.cube").iterdir()]
    pickled = [cloudpickle.dumps(each) for each in (ds, dict(ds.__dask_graph__()), ds.red.data)]
    for data in (*written, *pickled, *texts):
        for secret in user.user.values():
            assert_no_secret(data, secret)
