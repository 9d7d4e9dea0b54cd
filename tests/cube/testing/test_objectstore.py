from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from pathlib import Path

import obstore
import pytest
from obstore.store import HTTPStore

import cube.testing.objectstore as module
from cube.errors import CubeError
from cube.testing import ObjectStore

BODY = bytes(range(256)) * 40
BIG_BYTES = 20_000_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    (root / "a.bin").write_bytes(BODY)
    (root / "empty.bin").write_bytes(b"")
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "ä +%.bin").write_bytes(b"named")
    (root.parent / "secret.txt").write_text("outside")
    with (root / "big.bin").open("wb") as file:
        file.truncate(BIG_BYTES)
    return root


@pytest.fixture(scope="module")
def running(root):
    with ObjectStore(root) as store:
        yield store


@pytest.fixture
def store(running):
    running.reset()
    return running


def ask(store, path, method="GET", **headers):
    """Return (status, headers, body) of one request, by urllib."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{store.url}/{path}", method=method, headers=fields)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def connect(store):
    host, port = store.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def receive_all(connection):
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_get_gives_the_whole_file_with_its_validators(store, root):
    status, headers, body = ask(store, "a.bin")
    assert (status, body) == (200, BODY)
    assert headers["Content-Length"] == str(len(BODY))
    assert headers["Accept-Ranges"] == "bytes"
    assert headers["ETag"].startswith('"')
    modified = parsedate_to_datetime(headers["Last-Modified"]).timestamp()
    assert modified == int((root / "a.bin").stat().st_mtime)


def test_head_describes_without_a_body(store):
    _, whole, _ = ask(store, "a.bin")
    status, headers, body = ask(store, "a.bin", "HEAD", Range="bytes=0-9")
    assert (status, body) == (200, b"")
    assert (headers["Content-Length"], headers["ETag"]) == (str(len(BODY)), whole["ETag"])


@pytest.mark.parametrize(
    ("field", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-99", 5, 100),
        ("bytes=10000-", 10000, len(BODY)),
        ("bytes=-7", len(BODY) - 7, len(BODY)),
        ("bytes=-999999", 0, len(BODY)),
        ("bytes=0-", 0, len(BODY)),
        (f"bytes=100-{10**17}", 100, len(BODY)),
    ],
)
def test_range(store, field, start, stop):
    status, headers, body = ask(store, "a.bin", Range=field)
    assert (status, body) == (206, BODY[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BODY)}"
    assert store.counts().ranges == (("GET", "a.bin", start, stop),)


@pytest.mark.parametrize("field", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_range_beyond_the_end_is_416(store, field):
    status, headers, body = ask(store, "a.bin", Range=field)
    assert (status, body) == (416, b"")
    assert headers["Content-Range"] == f"bytes */{len(BODY)}"
    assert store.counts().bytes == 0


@pytest.mark.parametrize("field", ["bytes=9-5", "bytes=-", "bytes=a-b", "bytes=0-1,5-6", "items=0-1", "bytes=0-1x"])
def test_malformed_or_multiple_range_gives_the_whole(store, field):
    assert ask(store, "a.bin", Range=field)[::2] == (200, BODY)


def test_empty_file(store):
    assert ask(store, "empty.bin")[::2] == (200, b"")
    assert ask(store, "empty.bin", Range="bytes=0-")[0] == 416


def test_conditions(store):
    etag = ask(store, "a.bin")[1]["ETag"]
    assert ask(store, "a.bin", If_Match=etag)[::2] == (200, BODY)
    assert ask(store, "a.bin", If_Match=f'"other", {etag}')[0] == 200
    assert ask(store, "a.bin", If_Match="*")[0] == 200
    assert ask(store, "a.bin", If_Match='"other"')[::2] == (412, b"")
    assert ask(store, "a.bin", If_Match=f"W/{etag}")[0] == 412
    modified = ask(store, "a.bin")[1]["Last-Modified"]
    assert ask(store, "a.bin", Range="bytes=0-9", If_Range=modified)[::2] == (206, BODY[:10])
    status, headers, body = ask(store, "a.bin", If_None_Match=f'"other", W/{etag}')
    assert (status, body, headers["ETag"]) == (304, b"", etag)
    assert ask(store, "a.bin", If_None_Match="*")[0] == 304
    assert ask(store, "a.bin", If_None_Match='"other"')[0] == 200
    assert ask(store, "a.bin", Range="bytes=0-9", If_Range=etag)[::2] == (206, BODY[:10])
    assert ask(store, "a.bin", Range="bytes=0-9", If_Range='"other"')[::2] == (200, BODY)


def test_file_written_anew_has_another_etag(store, root):
    path = root / "changing.bin"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1_000_000_001))
    etag = ask(store, "changing.bin")[1]["ETag"]
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1_000_000_002))
    assert ask(store, "changing.bin", If_Match=etag)[0] == 412
    assert ask(store, "changing.bin")[2] == b"two"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing.bin", 404),
        ("a.bin/x", 404),
        ("deep", 404),
        ("deep/", 404),
        ("", 404),
        ("deep//er/x", 404),
        ("./a.bin", 404),
        ("../secret.txt", 403),
        ("deep/../../secret.txt", 403),
        ("%2e%2e/secret.txt", 403),
        ("deep%2f..%2f..%2fsecret.txt", 403),
        ("a.bin%00", 403),
        ("-/else", 404),
    ],
)
def test_what_is_not_there_or_outside_is_refused(store, path, status):
    with connect(store) as connection:  # urllib would tidy the path first
        connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        head, _, body = receive_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert body == b""
    assert store.counts().bytes == 0


def test_path_is_decoded_and_query_ignored(store):
    assert ask(store, "deep/er/%C3%A4%20+%25.bin?sig=secret")[2] == b"named"
    assert store.counts().paths == {"deep/er/ä +%.bin": 1}


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_only_reading(store, root, method):
    status, headers, _ = ask(store, "a.bin", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert (root / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET a.bin HTTP/1.1\r\n\r\n", 400),
        (b"GET /a.bin HTTP/2\r\n\r\n", 400),
        (b"GET /a.bin HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"PUT /a.bin HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 413),
        (b"PUT /a.bin HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (b"GET /" + b"x" * 70_000, 431),
    ],
)
def test_requests_that_cannot_be_served_end_the_connection(store, head, status):
    with connect(store) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 %d " % status)
    assert store.counts().requests == 0


def test_pipelined_requests_are_answered_in_order_on_one_connection(store):
    with connect(store) as connection:
        for i in range(200):
            connection.sendall(f"GET /a.bin HTTP/1.1\r\nRange: bytes={i}-{i}\r\n\r\n".encode())
        connection.sendall(b"GET /a.bin HTTP/1.1\r\nRange: bytes=200-299\r\nConnection: close\r\n\r\n")
        answers = receive_all(connection).split(b"HTTP/1.1 206 ")[1:]
    assert [answer.split(b"\r\n\r\n")[1] for answer in answers] == [BODY[i : i + 1] for i in range(200)] + [
        BODY[200:300]
    ]
    assert b"Connection: close" in answers[-1]
    assert b"Connection: close" not in answers[0]


def test_requests_after_a_big_body_wait_for_their_own_answers(root, capfd):
    with ObjectStore(root, latency_s=0.01) as store, connect(store) as connection:
        for _ in range(2):
            connection.sendall(
                b"GET /big.bin HTTP/1.1\r\n\r\n" + b"GET /a.bin HTTP/1.1\r\nRange: bytes=0-99\r\n\r\n" * 3
            )
        connection.sendall(b"GET /a.bin HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = receive_all(connection)
        assert store.counts().bytes == 2 * (BIG_BYTES + 300) + len(BODY)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.count(b"\r\n\r\n" + BODY[:100]) == 7
    assert received.endswith(BODY)
    assert capfd.readouterr().err == ""


def test_request_in_pieces(store):
    with connect(store) as connection:
        for byte in b"GET /a.bin HTTP/1.0\r\nRange: bytes=1-2\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert receive_all(connection).endswith(b"\r\n\r\n" + BODY[1:3])


def test_counts_are_exact_and_reset(store):
    assert store.counts().requests == 0
    ask(store, "a.bin")
    ask(store, "a.bin", Range="bytes=3-12")
    ask(store, "a.bin", "HEAD")
    ask(store, "a.bin", Range="bytes=99999-")
    ask(store, "nothing.bin")
    counts = store.counts()
    assert counts.requests == 5
    assert counts.bytes == len(BODY) + 10
    assert counts.paths == {"a.bin": 4, "nothing.bin": 1}
    assert counts.statuses == {200: 2, 206: 1, 404: 1, 416: 1}
    assert counts.faults == {}
    assert counts.cpu_s > 0
    assert counts.ranges == (("GET", "a.bin", 0, len(BODY)), ("GET", "a.bin", 3, 13), ("HEAD", "a.bin", 0, 0))
    assert store.counts() == counts
    store.reset()
    assert store.counts() == module.Counts(requests=0, bytes=0, paths={}, ranges=(), max_in_flight=0)
    assert store.records() == ()


def test_records_say_what_was_asked_and_answered(store):
    began = time.monotonic()
    ask(store, "a.bin")
    ask(store, "a.bin", Range="bytes=3-12")
    ask(store, "a.bin", Range="bytes=10000-")
    ask(store, "a.bin", Range="bytes=-7")
    ask(store, "a.bin", "HEAD", Range="bytes=3-12")
    ask(store, "nothing.bin", Range="bytes=0-0")
    records = store.records()
    assert [(each.method, each.path, each.start, each.stop, each.status) for each in records] == [
        ("GET", "a.bin", 0, None, 200),
        ("GET", "a.bin", 3, 13, 206),
        ("GET", "a.bin", 10000, None, 206),
        ("GET", "a.bin", -7, None, 206),
        ("HEAD", "a.bin", 0, 0, 200),
        ("GET", "nothing.bin", 0, 1, 404),
    ]
    assert {(each.outcome, each.retry_after_s) for each in records} == {("answered", None)}
    times = [time_s for each in records for time_s in (each.arrived_s, each.answered_s)]
    assert times == sorted(times)
    assert times[-1] - times[0] <= time.monotonic() - began


def test_records_tell_of_clients_that_leave(root):
    with ObjectStore(root, latency_s=600) as store:
        with connect(store) as connection:
            connection.sendall(b"GET /a.bin HTTP/1.1\r\nRange: bytes=1-2\r\n\r\n")
            while store.counts().requests == 0:
                pass
            assert store.records() == ()  # it is not done with
        while not (records := store.records()):
            pass
    [record] = records
    assert (record.outcome, record.status, record.answered_s, record.start, record.stop) == ("left", 0, None, 1, 3)


def test_counts_can_be_read_by_anyone(store):
    ask(store, "a.bin")
    status, headers, body = ask(store, "-/counts")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert json.loads(body)["requests"] == 1
    assert ask(store, "-/reset", "POST")[0] == 200
    assert ask(store, "-/reset")[0] == 404
    assert store.counts().requests == 0


def test_obstore_reads_heads_and_sees_conditions(store):
    client = HTTPStore.from_url(store.url, client_options={"allow_http": True})
    assert bytes(obstore.get(client, "a.bin").bytes()) == BODY
    assert bytes(obstore.get_range(client, "a.bin", start=10, end=20)) == BODY[10:20]
    assert [
        bytes(part) for part in obstore.get_ranges(client, "a.bin", starts=[0, 9000], ends=[5, 9010], coalesce=0)
    ] == [
        BODY[:5],
        BODY[9000:9010],
    ]
    meta = obstore.head(client, "a.bin")
    assert meta["size"] == len(BODY)
    assert bytes(obstore.get(client, "a.bin", options={"if_match": meta["e_tag"]}).bytes()) == BODY
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(client, "a.bin", options={"if_match": '"other"'})
    with pytest.raises(FileNotFoundError):
        obstore.get(client, "nothing.bin")
    counts = store.counts()
    assert counts.requests == 8
    assert counts.bytes == 2 * len(BODY) + 10 + 5 + 10


def test_obstore_reads_many_ranges_at_once(root):
    async def read_all(url):
        client = HTTPStore.from_url(url, client_options={"allow_http": True})
        reads = [obstore.get_range_async(client, "a.bin", start=i, length=i + 1) for i in range(100)]
        return await asyncio.gather(*reads)

    with ObjectStore(root, latency_s=0.1) as store:
        parts = asyncio.run(read_all(store.url))
        counts = store.counts()
    assert [bytes(part) for part in parts] == [BODY[i : 2 * i + 1] for i in range(100)]
    assert (counts.requests, counts.bytes) == (100, 5050)
    assert sorted(counts.ranges) == [("GET", "a.bin", i, 2 * i + 1) for i in range(100)]
    assert counts.max_in_flight > 1


def test_any_number_of_requests_waits_at_once(root):
    with ObjectStore(root, latency_s=600) as store, contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(store)).sendall(b"GET /a.bin HTTP/1.1\r\n\r\n")
        while store.counts().requests < 300:
            pass
        assert store.counts().max_in_flight == 300


def test_latency_holds_back_objects_and_nothing_else(root):
    with ObjectStore(root, latency_s=600) as store, connect(store) as waiting:
        waiting.sendall(b"GET /a.bin HTTP/1.1\r\n\r\n")
        while store.counts().requests == 0:
            pass
        assert store.counts().bytes == 0
        assert store.counts().max_in_flight == 1
        waiting.close()
        store.reset()
        while store.counts().max_in_flight:  # what is in flight survives a reset, and ends with its connection
            store.reset()


def test_client_that_does_not_read_costs_little_memory_and_blocks_nobody(store):
    with connect(store) as connection:
        connection.sendall(b"GET /big.bin HTTP/1.1\r\nConnection: close\r\n\r\n")
        connection.recv(1)
        assert ask(store, "a.bin")[2] == BODY
        sent = store.counts().bytes - len(BODY)
        assert sent < BIG_BYTES - 2_000_000  # the rest waits for the client, it is not in memory
        body = receive_all(connection).partition(b"\r\n\r\n")[2]
    assert len(body) == BIG_BYTES
    assert store.counts().bytes == BIG_BYTES + len(BODY)


def test_big_bodies_end_their_connections_quietly(root, capfd):
    with ObjectStore(root) as store:
        for _ in range(4):
            assert len(ask(store, "big.bin", Connection="close")[2]) == BIG_BYTES
        assert store.counts().bytes == 4 * BIG_BYTES
    assert capfd.readouterr().err == ""


def test_client_that_leaves_is_forgotten(store):
    with connect(store) as connection:
        connection.sendall(b"GET /big.bin HTTP/1.1\r\n\r\n")
        connection.recv(1)
    store.reset()
    while store.counts().max_in_flight:
        store.reset()
    assert ask(store, "a.bin")[2] == BODY


def test_missing_folder_is_a_clear_error(tmp_path):
    with (
        pytest.raises(CubeError, match=r"nowhere cannot start: there is no such folder"),
        ObjectStore(tmp_path / "nowhere"),
    ):
        pass


def test_url_needs_a_running_store(root):
    store = ObjectStore(root)
    with pytest.raises(CubeError, match="use it in a `with` block"):
        _ = store.url
    with store:
        assert store.url.startswith("http://127.0.0.1:")
    with pytest.raises(CubeError, match="is not running"):
        store.counts()
    with store:  # and again
        assert ask(store, "a.bin")[0] == 200


def test_child_that_fails_or_dies_is_a_clear_error(root, monkeypatch, tmp_path):
    (tmp_path / "__main__.py").write_text("no Python")
    with monkeypatch.context() as patch:
        patch.setattr(module, "__file__", str(tmp_path / "__init__.py"))
        with pytest.raises(CubeError, match="did not start; its process ended with exit code 1"), ObjectStore(root):
            pass
    with ObjectStore(root) as store:
        store._process.kill()
        store._process.wait()
        with pytest.raises(CubeError, match=r"does not answer .*its process ended with exit code"):
            store.counts()


def test_process_ends_with_its_parent(root):
    code = (
        "import os, sys; from cube.testing import ObjectStore; store = ObjectStore(sys.argv[1]).__enter__();"
        "print(store.url, flush=True); os._exit(9)"
    )
    folder = Path(module.__file__).parents[3]
    # The store inherits stderr, so that this waits for its end too; were it to live on, the timeout would tell.
    run = subprocess.run(
        [sys.executable, "-c", code, str(root)], check=False, capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert (run.returncode, run.stderr) == (9, "")
    host, port = run.stdout.strip().removeprefix("http://").split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=30)
