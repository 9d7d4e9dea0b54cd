"""Requests and bytes of every workload of the benchmark stay at most what the recorded baseline says."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import baseline

pytestmark = pytest.mark.timeout(600)  # its fixture runs every workload, on a machine that may do other things


@pytest.fixture(scope="module")
def found():
    return baseline.measure(full=False)


def test_no_workload_asks_for_more(found):
    known = baseline.load(full=False)
    worse = baseline.grown(found, known)
    assert not worse, "\n".join(["", *worse, "", baseline.table(found, known), f"if that is meant: {baseline.RENEW}"])


def test_every_workload_is_recorded(found):
    known = baseline.load(full=False)
    assert {peer: set(rows) for peer, rows in known.items()} == {peer: set(rows) for peer, rows in found.items()}
    assert {peer: set(rows) for peer, rows in baseline.load(full=True).items()} == {
        peer: set(rows) for peer, rows in found.items()
    }


def test_one_request_or_byte_more_is_told(found):
    for what in ("requests", "bytes"):
        worse = copy.deepcopy(found)
        worse["cogcube"]["window"][what] += 1
        (told,) = baseline.grown(worse, found)
        assert told.startswith("cogcube, window: ")
        assert what in told
    assert baseline.grown(found, {}) == [
        f"{peer}, {workload}: not in the baseline" for peer, rows in found.items() for workload in rows
    ]


def test_larger_files_may_have_more_bytes_and_no_more_requests(found):
    larger = copy.deepcopy(found)
    row = larger["cogcube"]["window"]
    row["archive_bytes"] *= 2
    row["bytes"] *= 2
    assert baseline.grown(larger, found) == []
    row["bytes"] = int(row["bytes"] * 1.02)
    assert len(baseline.grown(larger, found)) == 1
    row["requests"] += 1
    assert len(baseline.grown(larger, found)) == 2


def test_a_renewed_baseline_keeps_the_other_size(found, tmp_path, monkeypatch):
    file = tmp_path / "baseline.json"
    monkeypatch.setattr(baseline, "FILE", file)
    baseline.renew(found, full=False)
    baseline.renew(found, full=True)
    assert set(json.loads(file.read_text())) == {"small", "full"}
    assert baseline.grown(found, baseline.load(full=False)) == []
