from __future__ import annotations

import asyncio
import itertools
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.errors import ReadError, SourceNotFoundError
from cube.io import attempts, loop
from cube.io.budget import Budget
from cube.io.ranges import plan_requests, read_all, read_head, read_range
from cube.io.trace import trace
from cube.settings import get_settings
from cube.testing import ObjectStore
from tests.serving import Quiet, serving

BODY = bytes(range(256)) * 40

spans = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 300)), max_size=30)


def planned(spans, gap_bytes=0, request_bytes=10**6):
    return plan_requests(
        [start for start, _ in spans],
        [length for _, length in spans],
        gap_bytes=gap_bytes,
        request_bytes=request_bytes,
    )


@given(spans, st.integers(0, 200), st.integers(1, 1000))
def test_every_range_lies_in_exactly_one_request(spans, gap_bytes, request_bytes):
    requests = planned(spans, gap_bytes, request_bytes)
    assert sorted(i for request in requests for i in request.members) == list(range(len(spans)))
    for request in requests:
        for i in request.members:
            start, length = spans[i]
            assert request.start <= start
            assert start + length <= request.stop


@given(spans, st.integers(0, 200), st.integers(1, 1000))
def test_a_request_has_no_wide_gap_and_no_waste(spans, gap_bytes, request_bytes):
    for request in planned(spans, gap_bytes, request_bytes):
        inside = sorted((spans[i][0], sum(spans[i])) for i in request.members)
        assert request.start == inside[0][0]
        assert request.stop == max(stop for _, stop in inside)
        reached = inside[0][1]
        for start, stop in inside[1:]:
            assert start - reached <= gap_bytes
            reached = max(reached, stop)


@given(spans, st.integers(0, 200), st.integers(1, 1000))
def test_only_a_single_range_makes_a_request_larger_than_allowed(spans, gap_bytes, request_bytes):
    for request in planned(spans, gap_bytes, request_bytes):
        longest = max(spans[i][1] for i in request.members)
        assert request.stop - request.start <= max(request_bytes, longest)


@given(spans, st.integers(0, 200))
def test_what_could_be_merged_is_merged(spans, gap_bytes):
    requests = sorted(planned(spans, gap_bytes), key=lambda each: each.start)
    for one, other in itertools.pairwise(requests):
        assert other.start - one.stop > gap_bytes


@given(st.randoms(), spans)
def test_the_order_of_ranges_changes_no_request(random, spans):
    order = list(range(len(spans)))
    random.shuffle(order)
    straight = {(each.start, each.stop) for each in planned(spans, 50, 500)}
    shuffled = {(each.start, each.stop) for each in planned([spans[i] for i in order], 50, 500)}
    assert shuffled == straight


def test_examples_of_merging():
    assert planned([]) == []
    assert [(r.start, r.stop, r.members) for r in planned([(10, 5), (0, 10)])] == [(0, 15, (1, 0))]
    assert [(r.start, r.stop) for r in planned([(0, 10), (11, 5)])] == [(0, 10), (11, 16)]
    assert [(r.start, r.stop) for r in planned([(0, 10), (11, 5)], gap_bytes=1)] == [(0, 16)]
    assert [(r.start, r.stop) for r in planned([(0, 10), (10, 10)], request_bytes=19)] == [(0, 10), (10, 20)]
    assert [(r.start, r.stop) for r in planned([(0, 100), (10, 5), (200, 1)])] == [(0, 100), (200, 201)]


# The budget.


async def hold(limit, amount, seen, until):
    async with limit.hold(amount):
        seen.append(amount)
        await until.wait()


def test_what_fits_enters_and_the_rest_waits_its_turn():
    async def main():
        limit, seen, until = Budget(100), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, n, seen, until)) for n in (60, 30, 50, 10)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [60, 30], "10 would fit, but 50 came first and must not starve"
        until.set()
        await asyncio.gather(*tasks)
        assert seen == [60, 30, 50, 10]

    asyncio.run(main())


def test_a_piece_larger_than_all_waits_to_be_alone():
    async def main():
        limit, seen, until = Budget(100), [], asyncio.Event()
        small = asyncio.create_task(hold(limit, 1, seen, until))
        await asyncio.sleep(0)
        huge = asyncio.create_task(hold(limit, 10**9, seen, until))
        await asyncio.sleep(0)
        assert seen == [1]
        until.set()
        await asyncio.gather(small, huge)
        assert seen == [1, 10**9]

    asyncio.run(main())


@given(st.lists(st.tuples(st.integers(1, 120), st.booleans()), max_size=12))
def test_everything_is_given_back_even_by_those_who_are_cancelled(plan):
    async def main():
        limit, seen, until = Budget(100), [], asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, n, seen, until)) for n, _ in plan]
        await asyncio.sleep(0)
        for task, (_, gives_up) in zip(tasks, plan, strict=True):
            if gives_up:
                task.cancel()
        await asyncio.sleep(0)
        until.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        # All of it is there again: one piece as large as everything enters at once.
        async with asyncio.timeout(10), limit.hold(100):
            pass

    asyncio.run(main())


def test_granted_and_cancelled_in_one_tick_is_given_back():
    async def main():
        limit, seen = Budget(100), []
        async with limit.hold(100):
            waiting = asyncio.create_task(hold(limit, 100, seen, asyncio.Event()))
            await asyncio.sleep(0)
        waiting.cancel()  # it has been let in by the line above, and has not run since
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert seen == []
        async with asyncio.timeout(10), limit.hold(100):
            pass

    asyncio.run(main())


# Real requests.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    (root / "a.bin").write_bytes(BODY)
    (root / "empty.bin").write_bytes(b"")
    with ObjectStore(root) as running:
        yield running


@pytest.fixture(params=["http", "file"])
def href(request, store, tmp_path):
    if request.param == "http":
        return f"{store.url}/a.bin"
    (tmp_path / "a.bin").write_bytes(BODY)
    return (tmp_path / "a.bin").as_posix()


@pytest.fixture
def settings(monkeypatch):
    """Return a function that changes settings for one test."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(f"CUBE_{name.upper()}", str(value))
        get_settings.cache_clear()

    yield change
    monkeypatch.undo()
    get_settings.cache_clear()


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 10240), (255, 257), (10239, 10240)])
def test_a_range_is_its_bytes(href, start, stop):
    with trace() as asked:
        data = loop.run(read_range(href, start, stop))
    assert bytes(data) == BODY[start:stop]
    (record,) = asked.records
    assert (record.href, record.start, record.stop, record.attempt, record.failed) == (href, start, stop, 1, False)
    assert record.seconds > 0


@pytest.mark.parametrize("nbytes", [1, 100, 10240, 99999])
def test_a_head_is_at_most_what_is_there(href, nbytes):
    head = loop.run(read_head(href, nbytes))
    assert bytes(head.data) == BODY[:nbytes]
    assert head.size == len(BODY)
    assert head.etag
    assert not head.etag.startswith('"')
    assert head.last_modified is not None


def test_a_small_object_is_read_whole(href):
    assert loop.run(read_all(href, max_bytes=len(BODY))) == BODY
    with pytest.raises(ReadError, match=f"has {len(BODY)} bytes; at most 10239 are read"):
        loop.run(read_all(href, max_bytes=len(BODY) - 1))


def test_a_range_past_the_end_is_an_error(href, settings):
    settings(attempts=1)
    with pytest.raises(ReadError, match=r"ends before byte 20000"):
        loop.run(read_range(href, 20000, 20010))
    with pytest.raises(ReadError, match=r"ends at byte 10240, before byte 20000"):
        loop.run(read_range(href, 10000, 20000))


def test_what_is_not_there_is_not_found(store, tmp_path):
    for href in (f"{store.url}/nothing.bin", (tmp_path / "nothing.bin").as_posix(), "/no/such/folder/a.bin"):
        with pytest.raises(SourceNotFoundError) as caught:
            loop.run(read_range(href, 0, 1))
        assert str(caught.value).startswith(f"{href}: there is no such")
        assert caught.value.href == href


def test_an_empty_object_says_so(store, tmp_path):
    (tmp_path / "empty.bin").write_bytes(b"")
    for href in (f"{store.url}/empty.bin", (tmp_path / "empty.bin").as_posix()):
        with pytest.raises(ReadError, match="ends before byte 0: it is empty"):
            loop.run(read_head(href, 100))


def test_requests_in_flight_are_bounded(tmp_path, settings):
    (tmp_path / "a.bin").write_bytes(BODY)
    settings(requests_in_flight=3)
    name, before = "requests", loop.loop_state("requests", lambda: None)

    async def many(url):
        await asyncio.gather(*[read_range(f"{url}/a.bin", i, i + 1) for i in range(30)])

    try:
        loop._get().state.pop(name)
        with ObjectStore(tmp_path, latency_s=0.01) as slow:
            loop.run(many(slow.url))
            counts = slow.counts()
    finally:
        loop._get().state[name] = before
        if before is None:
            loop._get().state.pop(name)
    assert counts.requests == 30
    assert counts.max_in_flight == 3


@contextmanager
def server_of(*answers):
    """Answer each request as it says, then as a sound store would. Gives (url, requests)."""
    pending, asked = list(answers), []

    class Handler(Quiet):
        def reply(self):
            asked.append(self.path)
            answer = pending.pop(0) if pending else "sound"
            start, stop = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
            body = BODY if answer == "no ranges" else BODY[start : stop + 1]
            if answer == "hang up":
                self.close_connection = True
                return
            if answer == "garbage":
                self.wfile.write(b"this is not HTTP\r\n\r\n")
                return
            if isinstance(answer, int):
                self.send_response(answer)
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"sorry!")
                return
            self.send_response(200 if answer == "no ranges" else 206)
            if answer != "no ranges":
                self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(BODY)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer == "half" else body)

    with serving(Handler) as url:
        yield f"{url}/a.bin", asked


@pytest.fixture
def fast(monkeypatch):
    """Retry at once."""
    monkeypatch.setattr(attempts, "_FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("answer", [408, 429, 500, 502, 503, 504, "hang up", "half", "garbage"])
def test_what_may_pass_is_tried_again(fast, answer):
    with server_of(answer, answer) as (href, asked), trace() as seen:
        data = loop.run(read_range(href, 100, 300))
    assert bytes(data) == BODY[100:300]
    assert len(asked) == 3
    assert [(each.attempt, each.failed) for each in seen.records] == [(1, True), (2, True), (3, False)]
    assert (seen.requests, seen.bytes) == (3, 200)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (400, "bytes 0-9 could not be read: the store answered 400"),
        (401, r"access denied \(401\): credentials are missing, expired or not enough"),
        (403, r"access denied \(403\)"),
        (404, r"there is no such object \(404\)"),
        (409, r"the object changed while it was read \(409\)"),
        (412, r"changed since it was scanned .*412.* run `cube refresh`"),
        (416, "ends before byte 0"),
        ("no ranges", "bytes 0-9 could not be read: the server ignores Range requests"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(answer, message):
    with server_of(answer) as (href, asked), pytest.raises(ReadError, match=message) as caught:
        loop.run(read_range(href, 0, 10))
    assert len(asked) == 1
    assert caught.value.href == href


@pytest.mark.parametrize("answer", [503, "hang up"])
def test_the_last_attempt_is_the_last(fast, settings, answer):
    settings(attempts=3)
    with server_of(*[answer] * 9) as (href, asked), pytest.raises(ReadError, match="after 3 attempts"):
        loop.run(read_range(href, 0, 10))
    assert len(asked) == 3


def test_a_store_that_is_not_there_is_an_error(fast):
    with pytest.raises(ReadError, match=r"http://127\.0\.0\.1:1/a\.bin: bytes 0-9 could not be read after 5 attempts"):
        loop.run(read_range("http://127.0.0.1:1/a.bin", 0, 10))


def test_a_signed_url_is_fetched_and_never_shown(store):
    with trace() as asked:
        data = loop.run(read_range("shown", 0, 10, signed=f"{store.url}/a.bin?sig=hidden"))
    assert bytes(data) == BODY[:10]
    assert asked.records[0].href == "shown"
    with pytest.raises(SourceNotFoundError) as caught:
        loop.run(read_head("shown", 10, signed=f"{store.url}/nothing.bin?sig=hidden"))
    assert "hidden" not in str(caught.value)
    assert store.url not in str(caught.value)


def test_a_cancelled_read_gives_its_place_back(settings, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)

    async def give_up(url):
        task = asyncio.create_task(read_range(f"{url}/a.bin", 0, 10))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        limit = attempts._process_budget()
        return limit._free == get_settings().requests_in_flight

    with ObjectStore(tmp_path, latency_s=5) as slow:
        assert loop.run(give_up(slow.url))
