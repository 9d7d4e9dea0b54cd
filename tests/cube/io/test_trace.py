from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cube.io.trace import Request, record, trace


def request(number=0, *, attempt=1, failed=False):
    made = {"href": f"{number}.tif", "start": 0, "stop": 10, "hedge": False, "first_byte_s": 0.05, "seconds": 0.1}
    return Request(**made, attempt=attempt, failed=failed)


def test_a_trace_holds_what_is_asked_while_it_is_open():
    record(request(1))
    with trace() as found:
        record(request(2))
        record(request(3))
    record(request(4))
    assert [each.href for each in found.records] == ["2.tif", "3.tif"]


def test_requests_count_retries_and_bytes_count_what_came():
    with trace() as found:
        record(request(failed=True))
        record(request(attempt=2))
    assert (found.requests, found.bytes) == (2, 10)


def test_traces_may_overlap():
    with trace() as outer:
        record(request(1))
        with trace() as inner:
            record(request(2))
        record(request(3))
    assert outer.requests == 3
    assert [each.href for each in inner.records] == ["2.tif"]


def test_a_trace_ends_with_its_block_even_by_an_error():
    with pytest.raises(KeyError), trace() as found:
        {}["nothing"]
    record(request())
    assert found.requests == 0


def test_threads_lose_no_record():
    with trace() as found, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: record(request(number)), range(1000)))
    assert {each.href for each in found.records} == {f"{number}.tif" for number in range(1000)}
