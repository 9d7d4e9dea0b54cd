"""What Azure's own client says, as answers and refusals; tests/contract/test_azure.py has an account."""

from __future__ import annotations

import sys
import weakref

import pytest

from cube.errors import MissingExtraError
from cube.io import azure, loop
from cube.io.answer import RefusedError
from cube.io.azure import AdlfsStore
from cube.io.credentials import AzureAccess
from tests.services import answering

BODY = bytes(range(256)) * 4
HEADERS = {
    "Content_Range": "bytes 0-9/1024",
    "ETag": '"0x1"',
    "Last_Modified": "Fri, 01 Mar 2024 00:00:00 GMT",
    "x_ms_blob_type": "BlockBlob",
}


def access(endpoint, **signing):
    return AzureAccess(account="account", container="c", endpoint=endpoint, **({"signer": None} | signing))


def get(store, **options):
    return loop.run(store.get("k", 0, 10, **options))


def refused(store, **options):
    with pytest.raises(RefusedError) as caught:
        get(store, **options)
    return caught.value


def test_an_answer_says_what_it_is_of():
    with answering(206, BODY[:10], **HEADERS) as (url, asked):
        answer = get(AdlfsStore(access(url)), if_match='"0x1"')
    assert (bytes(answer.data), answer.size, answer.etag) == (BODY[:10], 1024, "0x1")
    assert answer.last_modified.year == 2024
    assert answer.first_byte_s > 0
    (headers,) = ({name.lower(): value for name, value in each.items()} for each in asked)
    assert headers["x-ms-range"] == "bytes=0-9"
    assert headers["if-match"] == '"0x1"'
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("status", "is_transient"), [(500, True), (503, True), (412, False), (416, False), (404, False)]
)
def test_a_status_is_told_and_tried_once(status, is_transient):
    with answering(status, b"", x_ms_error_code="Whatever", Retry_After="7") as (url, asked):
        error = refused(AdlfsStore(access(url)))
    assert len(asked) == 1
    assert (error.status, error.is_transient, error.retry_after_s) == (status, is_transient, 7.0)
    assert error.text == f"the store answered {status} (Whatever)"


def test_a_body_that_is_cut_off_is_asked_for_once():
    with answering(206, BODY[:10], cut=4, **HEADERS) as (url, asked):
        error = refused(AdlfsStore(access(url)))
    assert len(asked) == 1
    assert (error.status, error.is_transient) == (None, True)


def test_a_connection_that_is_not_made_may_be_tried_again():
    error = refused(AdlfsStore(access("http://127.0.0.1:1/account")))
    assert (error.status, error.is_transient) == (None, True)
    assert "Cannot connect" in error.text


def test_one_client_an_account_and_nothing_of_adlfs_waits_for_the_end():
    with answering(404) as (url, _):
        for container in ("one", "two"):
            refused(AdlfsStore(AzureAccess(account="account", container=container, endpoint=url, signer=None)))
    clients = loop.loop_state("adlfs", dict)
    assert len([each for each in clients if each[0] == url]) == 1

    async def make_one():
        before = set(weakref.finalize._registry)
        made = azure._Client(access(url))
        await made.close()
        return set(weakref.finalize._registry) - before

    assert not [each for each in loop.run(make_one()) if "adlfs" in str(each.peek())]


def test_without_adlfs_the_error_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "adlfs", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtraError, match=r"pip install 'cogcube\[azure\]'"):
        AdlfsStore(access("http://127.0.0.1:1/account"))
