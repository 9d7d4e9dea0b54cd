from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import cube

BODY = bytes(range(256)) * 40
FOLDER = Path(cube.__file__).parents[1]
COMMAND = [sys.executable, "-m", "cube.testing.objectstore"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("objects")
    (root / "a.bin").write_bytes(BODY)
    return root


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=FOLDER, check=False)


def read(url):
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as answer:
        return answer.read()


def test_it_serves_and_says_where(root):
    command = [*COMMAND, str(root), "--latency-ms", "1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=FOLDER) as process:
        url = process.stdout.readline().strip()
        assert read(f"{url}/a.bin") == BODY
        port = url.rpartition(":")[2]
        second = run(str(root), "--port", port)
        process.terminate()
        process.wait()
        assert process.stderr.read() == ""
    assert second.returncode == 1
    assert f"cannot listen on port {port}" in second.stderr


def test_every_option_reaches_the_store(root):
    options = "--seed 3 --latency-ms 20 --sigma 0.5 --tail-share 0.1 --tail-s 2 --connection-mbs 40 --total-mbs 0.5"
    options += " --throttle-share 0.01 --requests-per-s 500 --throttle-status 429 --retry-after-s 1 --reset-share 0.02"
    options += " --truncate-share 0.03 --short-share 0.04 --hang-share 0.05 --at-most 6"
    command = [*COMMAND, str(root), *options.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER) as process:
        found = json.loads(read(f"{process.stdout.readline().strip()}/-/behaviour"))
        process.terminate()
    assert found == {
        "seed": 3,
        "latency": {"median_s": 0.02, "sigma": 0.5, "tail_share": 0.1, "tail_s": 2},
        "bandwidth": {"connection": 40e6, "total": 0.5e6},
        "faults": {
            "throttle_share": 0.01,
            "requests_per_s": 500,
            "throttle_status": 429,
            "retry_after_s": 1,
            "reset_share": 0.02,
            "truncate_share": 0.03,
            "short_share": 0.04,
            "hang_share": 0.05,
            "at_most": 6,
        },
    }
    said = run("--help").stdout
    assert all(word in said for word in options.split() if word.startswith("--"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which folder?"),
        (["no"], "there is no folder no"),
        ([".", "--reset-share", "2"], "reset_share of Faults is a number from 0 to 1, not 2.0"),
        ([".", "--throttle-status", "500"], "invalid choice: 500"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    refused = run(*arguments)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_the_store_s_process_needs_the_standard_library_only(root, tmp_path):
    for name in ("cube", "objectstore", "http", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('a file of the user')")
    script = FOLDER / "cube" / "testing" / "objectstore" / "__main__.py"
    command = [sys.executable, "-S", "-P", str(script), str(root)]  # -S: nothing that is installed
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert read(f"{process.stdout.readline().strip()}/a.bin") == BODY
        process.terminate()
