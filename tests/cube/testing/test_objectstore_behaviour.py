from __future__ import annotations

import collections
import itertools
import re
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request

import pytest

from cube.errors import CubeError
from cube.testing import Bandwidth, Faults, Latency, ObjectStore
from cube.testing.objectstore.behaviour import Behaviour, Draws, Link

BODY = bytes(range(256)) * 4096
MEGABYTE = len(BODY)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    (root / "a.bin").write_bytes(BODY)
    return root


@pytest.fixture(scope="module")
def running(root):
    with ObjectStore(root) as store:
        yield store


@pytest.fixture
def store(running):
    """A store without faults at first, and without counts."""
    running.behave(latency=Latency(), bandwidth=Bandwidth(), faults=Faults(), seed=0)
    running.reset()
    return running


def get(store, start=0, stop=MEGABYTE, timeout_s=30.0):
    """Return (head, body, error) of a GET of a range over a connection of its own."""
    host, port = store.url.removeprefix("http://").split(":")
    received, error = b"", None
    with socket.create_connection((host, int(port)), timeout=timeout_s) as connection:
        connection.sendall(f"GET /a.bin HTTP/1.1\r\nRange: bytes={start}-{stop - 1}\r\n\r\n".encode())
        wanted = None
        try:
            while len(received) != wanted and (piece := connection.recv(1 << 20)):
                received += piece
                if wanted is None and (length := re.search(rb"Content-Length: (\d+)(?s:.*?)\r\n\r\n", received)):
                    wanted = length.end() + int(length[1])
        except OSError as problem:
            error = type(problem)
    head, _, body = received.partition(b"\r\n\r\n")
    return head.decode(), body, error


def status(head):
    return int(head.split()[1])


def draw(behaviour, count):
    """Return [(delay in seconds, outcome)] of the first requests."""
    draws = Draws(behaviour)
    return [(draws.delay_s(), draws.fate(0.0)[0]) for _ in range(count)]


def test_latency_is_fixed_log_normal_or_in_the_tail():
    assert {delay for delay, _ in draw(Behaviour(latency=Latency(0.05)), 100)} == {0.05}
    spread = sorted(delay for delay, _ in draw(Behaviour(latency=Latency(0.05, sigma=0.5)), 20_000))
    assert statistics.median(spread) == pytest.approx(0.05, rel=0.02)
    # One standard deviation of the logarithm to each side.
    assert spread[round(20_000 * 0.1587)] == pytest.approx(0.05 * 2.71828**-0.5, rel=0.03)
    assert spread[round(20_000 * 0.8413)] == pytest.approx(0.05 * 2.71828**0.5, rel=0.03)
    tail = [delay for delay, _ in draw(Behaviour(latency=Latency(0.05, tail_share=0.01, tail_s=2)), 20_000)]
    assert set(tail) == {0.05, 2}
    assert tail.count(2) == pytest.approx(200, rel=0.2)


def test_faults_come_at_their_shares():
    shares = {"throttled": 0.05, "reset": 0.01, "truncated": 0.02, "short": 0.03, "hung": 0.04}
    faults = Faults(throttle_share=0.05, reset_share=0.01, truncate_share=0.02, short_share=0.03, hang_share=0.04)
    found = collections.Counter(outcome for _, outcome in draw(Behaviour(faults=faults), 20_000))
    assert set(found) == {*shares, "answered"}
    for outcome, share in shares.items():
        assert found[outcome] == pytest.approx(20_000 * share, rel=0.15)


def test_draws_repeat_by_their_seed():
    behaviour = Behaviour(latency=Latency(0.05, sigma=0.5), faults=Faults(throttle_share=0.3, reset_share=0.3), seed=1)
    drawn = draw(behaviour, 100)
    assert draw(behaviour, 100) == drawn
    assert draw(behaviour.changed({"seed": 2}), 100) != drawn
    # What is drawn of one kind does not depend on the other.
    assert [fate for _, fate in draw(behaviour.changed({"latency": {}}), 100)] == [fate for _, fate in drawn]
    assert [delay for delay, _ in draw(behaviour.changed({"faults": {}}), 100)] == [delay for delay, _ in drawn]


def test_faults_come_to_an_end():
    outcomes = [outcome for _, outcome in draw(Behaviour(faults=Faults(throttle_share=1, at_most=3)), 10)]
    assert outcomes == ["throttled"] * 3 + ["answered"] * 7


def test_an_account_allows_a_second_s_worth_at_once_and_its_rate_after_that():
    draws = Draws(Behaviour(faults=Faults(requests_per_s=100)))
    at_once = [draws.fate(7.0)[0] for _ in range(150)]
    assert at_once == ["answered"] * 100 + ["throttled"] * 50
    assert [draws.fate(7.25)[0] for _ in range(50)].count("answered") == 25
    steadily = [draws.fate(10 + i / 200)[0] for i in range(2000)]
    assert steadily.count("answered") == pytest.approx(100 + 10 * 100, abs=2)


def test_a_link_sends_at_its_rate_and_saves_up_nothing():
    link = Link(1000)
    assert link.reserve(5, 100, begins=True) == pytest.approx(5.1)
    assert link.reserve(5, 100, begins=True) == pytest.approx(5.2)  # behind the other
    assert link.reserve(5.21, 100, begins=False) == pytest.approx(5.3)  # a timer was late
    assert link.reserve(9, 100, begins=True) == pytest.approx(9.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Latency(-1), "median_s of Latency is a number from 0 on, not -1"),
        (lambda: Latency(float("nan")), "median_s of Latency"),
        (lambda: Latency(1, tail_share=1.5), "tail_share of Latency is a number from 0 to 1, not 1.5"),
        (lambda: Bandwidth(total=0), "total of Bandwidth is a number from 1 on, not 0"),
        (lambda: Faults(throttle_share=0.6, reset_share=0.6), "add up to 1.2, which is more than 1"),
        (lambda: Faults(throttle_status=500), "throttle_status is 429 or 503, not 500"),
        (lambda: Faults(retry_after_s=-1), "retry_after_s of Faults is a number from 0 on, not -1"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_two_latencies_are_one_too_many(root):
    with pytest.raises(CubeError, match="cannot have both latency_s and latency"):
        ObjectStore(root, 0.1, latency=Latency(0.2))


@pytest.mark.parametrize(
    "query", ["", "x", "[]", '{"latency":{"median_s":-1}}', '{"faults":{"nonsense":1}}', '{"x":1}']
)
def test_a_store_refuses_what_makes_no_sense_and_stays_as_it_is(store, query):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(urllib.request.Request(f"{store.url}/-/behaviour?{query}", method="POST"), timeout=30)
    assert status(get(store, 0, 10)[0]) == 206


def test_an_answer_is_never_sooner_than_its_latency(root):
    with ObjectStore(root, latency=Latency(0.02, sigma=0.3, tail_share=0.5, tail_s=0.1), seed=5) as store:
        for _ in range(10):
            get(store, 0, 10)
        found = [each.answered_s - each.arrived_s for each in store.records()]
    drawn = [
        delay for delay, _ in draw(Behaviour(latency=Latency(0.02, sigma=0.3, tail_share=0.5, tail_s=0.1), seed=5), 10)
    ]
    assert 0.1 in drawn
    assert all(took >= delay - 0.002 for took, delay in zip(found, drawn, strict=True))  # timers count milliseconds


@pytest.mark.parametrize(("code", "retry_after_s"), [(503, None), (429, 7), (503, 0)])
def test_throttled(store, code, retry_after_s):
    store.behave(faults=Faults(throttle_share=1, throttle_status=code, retry_after_s=retry_after_s, at_most=1))
    head, body, _ = get(store, 5, 25)
    assert (status(head), body) == (code, b"")
    assert ("Retry-After" in head) == (retry_after_s is not None)
    assert retry_after_s is None or f"Retry-After: {retry_after_s}\r\n" in head
    assert get(store, 5, 25)[1] == BODY[5:25]
    counts = store.counts()
    assert (counts.requests, counts.bytes, counts.statuses) == (2, 20, {code: 1, 206: 1})
    assert counts.faults == {"throttled": 1}
    throttled, answered = store.records()
    assert (throttled.outcome, throttled.status, throttled.retry_after_s) == ("throttled", code, retry_after_s)
    assert (answered.outcome, answered.status, answered.retry_after_s) == ("answered", 206, None)
    assert (throttled.path, throttled.start, throttled.stop) == (answered.path, answered.start, answered.stop)
    assert throttled.arrived_s <= throttled.answered_s <= answered.arrived_s


def test_an_account_s_limit_throttles(store):
    store.behave(faults=Faults(requests_per_s=5))
    statuses = [status(get(store, 0, 10)[0]) for _ in range(200)]
    assert statuses[:5] == [206] * 5
    assert 503 in statuses
    assert store.counts().faults == {"throttled": statuses.count(503)}


def test_resets_come_before_the_head_and_in_mid_body(store):
    store.behave(faults=Faults(reset_share=1))
    answers = [get(store) for _ in range(20)]
    assert {error for _, _, error in answers} == {ConnectionResetError}
    before = [head for head, _, _ in answers if not head]
    within = [body for head, body, _ in answers if head]
    assert before
    assert within
    assert all(len(body) < MEGABYTE and body == BODY[: len(body)] for body in within)
    assert max(map(len, within)) > 0
    counts = store.counts()
    assert (counts.faults, counts.statuses) == ({"reset": 20}, {206: len(within)})
    assert counts.bytes < MEGABYTE * len(within)
    assert sorted(each.status for each in store.records()) == [0] * len(before) + [206] * len(within)


def test_truncated_bodies_end_early_and_in_order(store):
    store.behave(faults=Faults(truncate_share=1))
    sizes = []
    for start in range(20):
        head, body, error = get(store, start, start + 1000)
        assert (status(head), error) == (206, None)
        assert head.endswith("Content-Length: 1000")
        assert len(body) < 1000
        assert body == BODY[start : start + len(body)]
        sizes.append(len(body))
    assert len(set(sizes)) > 10
    counts = store.counts()
    assert (counts.bytes, counts.faults, counts.statuses) == (sum(sizes), {"truncated": 20}, {206: 20})


def test_short_answers_are_sound(store):
    store.behave(faults=Faults(short_share=1))
    for start in range(20):
        head, body, error = get(store, start, start + 1000)
        assert (status(head), error) == (206, None)
        assert 1 <= len(body) < 1000
        assert f"Content-Range: bytes {start}-{start + len(body) - 1}/{MEGABYTE}\r\n" in head
        assert body == BODY[start : start + len(body)]
    assert len(get(store, 0, 1)[1]) == 1  # which cannot be shorter
    assert store.counts().faults == {"short": 20}


def test_hung_requests_are_never_answered_and_hold_nobody_up(store):
    store.behave(faults=Faults(hang_share=1, at_most=1))
    with socket.create_connection(store.url.removeprefix("http://").split(":"), timeout=30) as connection:
        connection.sendall(b"GET /a.bin HTTP/1.1\r\n\r\n" * 2)
        while store.counts().requests == 0:
            pass
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert get(store, 0, 10)[1] == BODY[:10]
        assert store.counts().faults == {"hung": 1}
        assert store.counts().requests == 2  # the second on its connection waits behind it
    while len(records := store.records()) < 2:
        pass
    assert [(each.outcome, each.status) for each in records] == [("hung", 0), ("answered", 206)]


def test_what_cannot_have_a_fault_is_answered(store):
    store.behave(faults=Faults(truncate_share=1))
    request = urllib.request.Request(f"{store.url}/a.bin", method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.headers["Content-Length"] == str(MEGABYTE)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{store.url}/nothing.bin", timeout=30)
    assert store.counts().faults == {}
    assert [each.outcome for each in store.records()] == ["answered", "answered"]


def test_behaviour_changes_a_part_at_a_time_and_draws_anew(store):
    faults = Faults(throttle_share=0.3, truncate_share=0.3)

    def outcomes():
        store.reset()
        for start in range(30):
            get(store, start, start + 100)
        return [each.outcome for each in store.records()]

    store.behave(faults=faults)
    first = outcomes()
    assert set(first) == {"answered", "throttled", "truncated"}
    assert outcomes() != first
    store.behave(latency=Latency(0.001))  # the faults stay
    assert outcomes() == first
    store.behave(seed=1)
    assert outcomes() != first
    store.behave(faults=Faults())
    assert set(outcomes()) == {"answered"}


def test_a_store_starts_again_as_it_was_made(root):
    store = ObjectStore(root, faults=Faults(throttle_share=1))
    for _ in range(2):
        with store:
            assert status(get(store, 0, 10)[0]) == 503
            store.behave(faults=Faults())
            assert status(get(store, 0, 10)[0]) == 206


def test_a_connection_is_no_faster_than_its_bandwidth(store):
    store.behave(bandwidth=Bandwidth(connection=10e6))
    began = time.monotonic()
    head, body, _ = get(store)
    assert time.monotonic() - began >= MEGABYTE / 10e6 - 0.002  # timers count milliseconds
    assert (status(head), body) == (206, BODY)
    assert store.counts().bytes == MEGABYTE


def test_all_connections_share_the_total(store):
    store.behave(bandwidth=Bandwidth(connection=100e6, total=10e6))
    bodies = []
    threads = [threading.Thread(target=lambda: bodies.append(get(store, 0, MEGABYTE // 4)[1])) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= MEGABYTE / 10e6 - 0.002
    assert bodies == [BODY[: MEGABYTE // 4]] * 4


def test_requests_wait_their_turn_behind_a_slow_body(store):
    store.behave(bandwidth=Bandwidth(connection=20e6))
    with socket.create_connection(store.url.removeprefix("http://").split(":"), timeout=30) as connection:
        connection.sendall(b"GET /a.bin HTTP/1.1\r\nRange: bytes=0-99999\r\n\r\n" * 3)
        connection.sendall(b"GET /a.bin HTTP/1.1\r\nRange: bytes=0-9\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in received.split(b"HTTP/1.1 206 Partial Content")[1:]]
    assert bodies == [*itertools.repeat(BODY[:100_000], 3), BODY[:10]]


def test_a_client_that_leaves_a_slow_body_is_forgotten(store):
    store.behave(bandwidth=Bandwidth(connection=1000))
    with socket.create_connection(store.url.removeprefix("http://").split(":"), timeout=30) as connection:
        connection.sendall(b"GET /a.bin HTTP/1.1\r\n\r\n")
        connection.recv(1)
    while not (records := store.records()):
        pass
    assert [(each.outcome, each.status) for each in records] == [("left", 200)]
    assert store.counts().bytes < MEGABYTE
