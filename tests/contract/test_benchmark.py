"""The benchmark holds wrong answers and failures against a system, never a time; and its report tells both."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from benchmarks import plots, processes, report, workloads
from benchmarks.archives import write_archive
from benchmarks.comparison import Contest, open_stage, summarise
from benchmarks.simulate import Job, simulate

PEER = """
from urllib.request import urlopen

import numpy as np


class Peer:
    name, settings, packages = "{name}", "none", ("numpy",)

    def supports(self, workload):
        return {supports!r}

    def prepare(self, archive, folder):
        return {{"made": folder}}

    def open(self, archive):
        print("noise on stdout")
        self.archive = archive
        assert "made" in archive.extras

    def run(self, workload):
        {run}


PEER = Peer()
"""
READ = "urlopen(self.archive.items[0]['assets']['red']['href']).read(10)"
RUNS = {
    "right": f"{READ}; return np.array([1, len(self.archive.items), *self.archive.shape])",
    "wrong": f"{READ}; return np.array([1, len(self.archive.items) + 1, *self.archive.shape])",
    "floating": f"{READ}; return np.array([1.0, len(self.archive.items), *self.archive.shape])",
    "raising": "raise ValueError('no such thing')",
    "exiting": "import os; os._exit(3)",
    "unable": "return None",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    with open_stage("series", 0, tmp_path_factory.mktemp("series"), full=False) as running:
        yield running


@pytest.fixture
def peers(tmp_path, monkeypatch):
    for file in ("worker.py", "protocol.py"):
        shutil.copy(processes.FOLDER / file, tmp_path)
    for name, run in RUNS.items():
        supports = "no such call" if name == "unable" else None
        (tmp_path / f"{name}.py").write_text(PEER.format(name=name.title(), run=run, supports=supports))
    monkeypatch.setattr(processes, "FOLDER", tmp_path)
    return list(RUNS)


def test_only_right_answers_have_times(stage, peers):
    workload = workloads.workloads(full=False)["open"]
    with Contest(stage, workload, peers) as contest:
        contest.round()
        contest.round()
    found = {name: summarise(result) for name, result in contest.results.items()}
    assert {name: facts["reason"] for name, facts in found.items()} == {
        "right": None,
        "wrong": "wrong answer: 1 of 1 values of plane 1 differ, first at (0,): 11 instead of 10",
        "floating": "wrong answer: float64 instead of int64",
        "raising": "ValueError: no such thing",
        "exiting": "ended with exit code 3: noise on stdout",
        "unable": "not offered: no such call",
    }
    assert len(found["right"]["warm"]) == 2
    assert (found["right"]["requests"], found["right"]["facts"]["name"]) == (1, "Right")
    assert all(not facts["warm"] and "median_s" not in facts for name, facts in found.items() if name != "right")


def test_what_reads_nothing_has_no_time(stage, peers):
    workload = replace(workloads.workloads(full=False)["series"], window=(0, 1, 0, 1))
    folder = processes.FOLDER
    lazy = RUNS["right"].replace(READ, "pass")
    (folder / "right.py").write_text(PEER.format(name="Right", run=lazy, supports=None))
    with Contest(stage, workload, ["right"]) as contest:
        pass
    assert contest.results["right"].reason == "read nothing from the store: a cache answered"


def test_a_peer_without_environment_is_an_open_row(stage, peers, monkeypatch, tmp_path):
    (processes.FOLDER / "requirements").mkdir()
    (processes.FOLDER / "requirements" / "right.txt").write_text("numpy\n")
    monkeypatch.setattr(processes, "ENVIRONMENTS", tmp_path / "envs")
    with Contest(stage, workloads.workloads(full=False)["open"], ["right"]) as contest:
        pass
    assert contest.results["right"].reason == "no environment: not made yet: `make bench-peers`"


@pytest.mark.parametrize("name", ["window", "ndvi_mean_window", "monthly", "chips"])
def test_a_single_wrong_number_is_found(name):
    workload = workloads.workloads(full=False)[name]
    wanted = workloads.answer(workload, write_archive(workload.archive, full=False))
    found = wanted.copy()
    assert workloads.difference(found, wanted, workload) is None
    found[(-1,) * found.ndim] += 1
    assert "instead of" in workloads.difference(found, wanted, workload)
    assert "shape" in workloads.difference(found[1:], wanted, workload)


def facts(median: float | None, reason: str | None = None) -> dict:
    about = {"name": "", "settings": "a | b", "versions": {"lib": "1"}, "python": "3"}
    run = {"seconds": 0.5, "cpu_seconds": 0.1, "requests": 5, "bytes": 6_000_000, "max_in_flight": 5}
    known = {"facts": about, "reason": reason, "open_s": 0.1, "cold": run, "warm": [run] * 5, "peak_bytes": 7}
    more = {
        "median_s": median,
        "quartiles_s": [median, median],
        "cpu_s": 0.1,
        "requests": 5,
        "bytes": 6_000_000,
        "max_in_flight": 5,
    }
    return known | (more if median is not None else {"cold": None, "warm": []})


def measured() -> report.Measured:
    cells = {
        ("window", ms): {
            "cogcube": facts(0.2),
            "cogcube_dask": facts(0.3),
            "floor": facts(0.1 if ms else 0.19),
            "fast": facts(0.1),
            "slow": facts(2.0),
            "failing": facts(None, "wrong answer: 1 | 2"),
        }
        for ms in (0.0, 50.0)
    }
    for cell in cells.values():
        for name, each in cell.items():
            each["facts"] = each["facts"] | {"name": name.title()}
    machine = {
        "cpu": {"brand_raw": "A processor", "count": 2},
        "memory_bytes": 2**33,
        "system": "Linux",
        "release": "6",
    }
    return report.Measured(cells=cells, scaling={}, machine=machine, date="2026-01-01")


def test_the_report_tells_where_we_lose_and_what_failed():
    page = report.write(measured())
    assert "| [window](#window) | 0.20 s | 0.30 s | 2.00 | - | Fast | 0.10 s | 0.50 | 0.60 s, 1.00 times ours |" in page
    assert "- **window**, Fast: 2.00 times as fast at 0 ms (0.10 s); 2.00 times as fast at 50 ms (0.10 s)" in page
    assert "- **window**, the floor: 2.00 times at 50 ms" in page
    assert "**window**, Slow" not in page
    assert "| Failing | all | wrong answer: 1 \\| 2 |" in page
    assert "A processor, 2 cores, 8 GiB of memory" in page


def test_the_plot_has_every_system_that_gave_answers():
    svg = report.plot(measured())
    root = ET.fromstring(svg)
    texts = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Cogcube", "Fast", "Slow", "0 ms", "50 ms", "0.1 s", "1 s", "window"} <= set(texts)
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 5  # not the one that failed
    assert plots.draw([], []).startswith("<svg")


def test_simulated_workers_scale_until_a_limit_binds():
    job = Job(blocks=1000, tasks_a_block=1, requests_a_block=10, bytes_a_block=1e6, block_s=1.0, task_s=0.001)
    assert simulate(job).seconds == pytest.approx(1001, abs=1)
    assert simulate(replace(job, workers=100)).seconds == pytest.approx(11, abs=1)
    few_requests = simulate(replace(job, workers=100, requests_a_s=100))
    assert (few_requests.bound_by, round(few_requests.seconds)) == ("requests a second", 100)
    few_bytes = simulate(replace(job, workers=100, bytes_a_s=1e7))
    assert (few_bytes.bound_by, round(few_bytes.seconds)) == ("bytes a second", 100)
    slow = simulate(replace(job, workers=1000, tasks_a_block=100))
    assert (slow.bound_by, round(slow.seconds)) == ("scheduler", 101)
    assert simulate(replace(job, workers=1000, tasks_a_block=100, schedulers=10)).seconds == pytest.approx(11, abs=1)


def test_the_files_of_peers_are_found():
    names = processes.names()
    assert names[:5] == [*processes.OURS, *processes.REFERENCES]
    assert {processes.requirements(name) is None for name in names[:5]} == {True}
    assert all(Path(processes.FOLDER / f"{name}.py").exists() for name in names)
    assert np.all([name not in {"worker", "protocol", "arithmetic"} for name in names])
