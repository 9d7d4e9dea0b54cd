"""What obstore says, as answers and refusals: of local files, and of stores that are broken in every way."""

from __future__ import annotations

import os

import pytest

from cube.io import loop
from cube.io.answer import RefusedError
from cube.io.credentials import AzureAccess, BucketAccess
from cube.io.objects import azure_store, bucket_store, folder_store
from tests.services import answering

BODY = bytes(range(256)) * 4
ETAG = '"0x1"'
STORE_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>Secret words</Message></Error>"


def access(endpoint, **signing):
    return AzureAccess(account="account", container="c", endpoint=endpoint, **({"signer": None} | signing))


def get(store, path="k", start=0, stop=10, **options):
    return loop.run(store.get(path, start, stop, **options))


def refused(store, path="k", start=0, stop=10, **options):
    with pytest.raises(RefusedError) as caught:
        get(store, path, start, stop, **options)
    return caught.value


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.tif").write_bytes(BODY)
    (tmp_path / "empty.tif").write_bytes(b"")
    return folder_store(tmp_path.as_posix())


def test_a_local_file_is_read(folder):
    answer = get(folder, "a.tif", 3, 9)
    assert bytes(answer.data) == BODY[3:9]
    assert answer.size == len(BODY)
    assert answer.last_modified is not None
    assert bytes(get(folder, "a.tif", 1000, 5000).data) == BODY[1000:]
    assert bytes(get(folder, "a.tif", 0, 4, if_match=f'"{answer.etag}"').data) == BODY[:4]


@pytest.mark.parametrize(
    ("path", "start", "options", "status"),
    [
        ("nothing.tif", 0, {}, 404),
        ("a.tif", 5000, {}, 416),
        ("empty.tif", 0, {}, 416),
        ("a.tif", 0, {"if_match": '"other"'}, 412),
        ("../a.tif", 0, {}, None),
    ],
)
def test_local_files_are_refused_as_stores_refuse(folder, path, start, options, status):
    error = refused(folder, path, start, start + 10, **options)
    assert error.status == status
    assert not error.is_transient


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who may read everything is refused nothing")
def test_a_file_that_may_not_be_read_is_no_absent_one(folder, tmp_path):
    (tmp_path / "a.tif").chmod(0)
    error = refused(folder, "a.tif")
    assert error.status is None
    assert "Permission denied" in error.text


def test_an_answer_says_what_it_is_of():
    with answering(
        206, BODY[:10], Content_Range="bytes 0-9/1024", ETag=ETAG, Last_Modified="Fri, 01 Mar 2024 00:00:00 GMT"
    ) as (url, asked):
        answer = get(azure_store(access(url)), if_match=ETAG)
    assert (bytes(answer.data), answer.size, answer.etag) == (BODY[:10], 1024, "0x1")
    assert answer.first_byte_s > 0
    (headers,) = ({name.lower(): value for name, value in each.items()} for each in asked)
    assert headers["range"] == "bytes=0-9"
    assert headers["if-match"] == ETAG
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("status", "is_transient", "is_throttle"),
    [(500, True, False), (503, True, True), (429, True, True), (412, False, False), (416, False, False)],
)
def test_a_status_is_told_and_tried_once(status, is_transient, is_throttle):
    with answering(status, STORE_ERROR.format("Busy").encode()) as (url, asked):
        error = refused(azure_store(access(url)))
    assert len(asked) == 1
    assert (error.status, error.is_transient, error.is_throttle) == (status, is_transient, is_throttle)
    assert error.text == f"the store answered {status} (Busy)"


@pytest.mark.parametrize("status_and_code", [(404, "ResourceNotFound"), (409, "PublicAccessNotPermitted")])
def test_what_is_private_is_not_absent_to_who_does_not_sign(status_and_code):
    status, code = status_and_code
    with answering(status, STORE_ERROR.format(code).encode()) as (url, _):
        error = refused(azure_store(access(url)))
        signed = refused(azure_store(access(url, key="c2VjcmV0", signer="AZURE_STORAGE_ACCOUNT_KEY")))
    assert error.status == 403
    assert "AZURE_STORAGE_ACCOUNT_KEY" in error.hint
    assert signed.status == status


def test_a_body_that_is_cut_off_may_be_asked_for_again():
    headers = {"Content_Range": "bytes 0-9/1024", "ETag": ETAG, "Last_Modified": "Fri, 01 Mar 2024 00:00:00 GMT"}
    with answering(206, BODY[:10], cut=4, **headers) as (url, asked):
        error = refused(azure_store(access(url)))
    assert len(asked) == 1
    assert (error.status, error.is_transient) == (None, True)
    with answering(206, BODY[:6], **headers | {"Content_Range": "bytes 0-5/1024"}) as (url, _):
        error = refused(azure_store(access(url)))
    assert (error.text, error.is_transient) == ("Requested 0..10, got 0..6", True)


def test_a_connection_that_is_not_made_may_be_tried_again():
    error = refused(azure_store(access("http://127.0.0.1:1/account")))
    assert (error.status, error.is_transient) == (None, True)
    assert "refused" in error.text.lower()


def test_errors_hold_no_url_and_no_signature():
    sas = "sv=2024-01-01&se=2099-01-01&sp=r&sig=SECRETSECRET%3D"
    for status in (403, 404, 500):
        with answering(status, STORE_ERROR.format("Whatever").encode()) as (url, _):
            error = refused(azure_store(access(url, sas=sas, signer="AZURE_STORAGE_SAS_TOKEN")))
        for text in (error.text, error.hint, str(error), repr(error)):
            assert "SECRET" not in text
            assert "127.0.0.1" not in text


def test_no_credentials_from_the_machine_is_no_refusal_of_the_object(monkeypatch):
    """As `AZURE_SKIP_SIGNATURE=false` asks for: the machine's identity, here at a server that has none to give."""
    with answering(400, b"{}") as (url, _), answering(206, BODY[:10]) as (store, asked):
        monkeypatch.setenv("AZURE_MSI_ENDPOINT", url)
        error = refused(azure_store(access(store, signer="AZURE_MSI_ENDPOINT")))
    assert not asked
    assert (error.status, error.is_transient) == (401, False)
    assert error.hint.startswith("no credentials could be got (")
    assert "AZURE_MSI_ENDPOINT" in error.hint


@pytest.mark.parametrize(("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
def test_a_bucket_of_another_region_is_told(monkeypatch, status, code):
    with answering(status, STORE_ERROR.format(code).encode()) as (url, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        error = refused(bucket_store(BucketAccess(cloud="AWS", bucket="b", signer=None)))
    assert (error.status, error.is_transient) == (status, False)
    assert error.hint == "the bucket 'b' is of another region: set AWS_REGION to it"


def test_advice_on_a_bucket():
    signed = BucketAccess(cloud="AWS", bucket="b", signer="AWS_ACCESS_KEY_ID")
    assert "set AWS_REGION" in signed.advice(301, None)
    assert "AWS_SKIP_SIGNATURE=true" in signed.advice(403, "AccessDenied")
    assert signed.advice(404, "NoSuchKey") == signed.advice(503, None) == ""
    google = BucketAccess(cloud="GOOGLE", bucket="b", signer=None)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in google.advice(401, None)
    assert google.host == "gs://b"
