from __future__ import annotations

import pytest

from cube.io.hosts import Host
from cube.settings import get_settings


@pytest.fixture(autouse=True)
def hedging(monkeypatch):
    monkeypatch.setenv("CUBE_HEDGE_SHARE", "0.03")
    get_settings.cache_clear()
    yield
    monkeypatch.undo()
    get_settings.cache_clear()


def answers(host, count, first_byte_s=0.0):
    for _ in range(count):
        host.sent()
        host.answered(first_byte_s)


def test_a_tenth_of_throttling_halves_the_limit_and_less_does_not():
    host = Host(256)
    for _ in range(100):
        answers(host, 19)
        host.throttled()
    assert host.requests.total == 256
    answers(host, 17)
    for _ in range(3):
        host.throttled()
    assert host.requests.total == 128


def test_few_answers_say_nothing():
    host = Host(256)
    for _ in range(19):
        host.throttled()
    assert host.requests.total == 256


def test_the_limit_falls_once_a_round_trip_at_most():
    host = Host(256)
    answers(host, 64, first_byte_s=60)  # the median, by which a round trip is a minute
    for _ in range(1000):
        host.throttled()
    assert host.requests.total == 256


def test_the_limit_never_falls_below_one_and_grows_by_steps_to_what_it_was():
    host = Host(64)
    for _ in range(1000):
        host.throttled()
    assert host.requests.total == 1
    answers(host, 20)
    assert host.requests.total == 9
    answers(host, 2000)
    assert host.requests.total == 64


def test_a_first_byte_is_late_by_what_others_take():
    host = Host(256)
    answers(host, 127, first_byte_s=0.1)
    assert host.late_s() is None  # too few are known
    answers(host, 1, first_byte_s=0.1)
    assert host.late_s() == pytest.approx(0.3)
    fast = Host(256)
    answers(fast, 128)
    assert fast.late_s() == pytest.approx(0.15)


def test_hedges_are_a_share_of_what_was_sent(monkeypatch):
    host = Host(256)
    answers(host, 1000)
    assert [host.take_hedge() for _ in range(40)] == [True] * 30 + [False] * 10
    monkeypatch.setenv("CUBE_HEDGE_SHARE", "0")
    get_settings.cache_clear()
    assert host.late_s() is None
