"""What all tests share: programs that may be missing, the real data, and an environment of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from cube.settings import get_settings
from tests.absent import absent

ROOT = Path(__file__).parents[1]

LONG = (
    "cube/test_demo.py",
    "cube/test_cli.py",
    "cube/archive/test_copy.py",
    "contract/test_corpus.py",
    "contract/test_corpus_over_http.py",
    "contract/test_baseline.py",
    "end_to_end/test_static_archive.py",
    "end_to_end/test_sentinel2.py",
    "end_to_end/test_dask.py",
    "end_to_end/test_strangers.py",
    "cube/engine/test_gateway.py",
)
"""Files that take long, of which many have few tests; they begin first, or one would go on alone at the end."""

# A deadline is a timed assertion, and the machine may be busy.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist take the files in our order, not by their numbers of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first."""
    long = {ROOT / "tests" / name for name in LONG}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache folder out of the tests, a proxy out of requests to this machine, and counts exact."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CUBE_HEDGE_SHARE", "0")  # where the machine is busy, requests would be sent twice
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost", prepend=",")
        get_settings.cache_clear()
        yield
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def require_program() -> Callable[[str, str], Path]:
    """Return `find(name, install)`: the path of a program, where `install` is the command that installs it.

    Without the program the test is skipped with that command as the reason, or fails where CUBE_REQUIRE=1.
    """

    def find(name: str, install: str) -> Path:
        # Of this environment, which need not be activated; and where servers are, which is not on every user's path.
        places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
        path = shutil.which(name, path=os.pathsep.join(places))
        return Path(path or absent(f"needs the program {name}: {install}"))

    return find


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real COGs and STAC items, or skip where there is none."""
    folder = Path(os.environ.get("CUBE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "MANIFEST.csv").is_file():
        absent(f"no real data in {folder}: set CUBE_TEST_DATA to its folder", is_required=False)
    return folder.resolve()


@pytest.fixture(scope="module")
def selected(request: pytest.FixtureRequest) -> Callable[[str], list[Any]]:
    """Return `find(name)`: the values that a parameter has in those tests of this module that are to run."""

    def find(name: str) -> list[Any]:
        specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
        return list(dict.fromkeys(spec.params[name] for spec in specs if spec is not None and name in spec.params))

    return find


type RunUv = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment outside of the project."""

    folder: Path

    def program(self, name: str) -> Path:
        windows = sys.platform == "win32"
        return self.folder / ("Scripts" if windows else "bin") / (f"{name}.exe" if windows else name)

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command as a stranger would: no checkout, no settings, an empty home."""
        hidden = ("PYTHON", "CUBE", "VIRTUAL_ENV", "UV_", "DASK", "COVERAGE")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        home = self.folder.parent / "home"
        home.mkdir(exist_ok=True)
        variables |= {"HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home), "NO_COLOR": "1"}
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def uv(require_program: Callable[[str, str], Path]) -> RunUv:
    """Return a function that runs uv in the project's folder and returns what it printed."""
    own = shutil.which("uv", path=ROOT / ".tools" / "uv" / ("Scripts" if sys.platform == "win32" else "bin"))
    program = own or require_program("uv", "make setup")
    # The cache that the set-up has filled, so that nearly nothing is fetched again.
    environment = {"UV_CACHE_DIR": str(ROOT / ".tools" / "cache"), **os.environ, "UV_PYTHON_DOWNLOADS": "never"}

    def run(*arguments: str | Path) -> str:
        command = [program, "--quiet", "--no-progress", *arguments]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


@pytest.fixture(scope="session")
def empty_environment(uv: RunUv, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Environment]:
    """Return a function that makes an empty virtual environment outside of the project."""

    def make() -> Environment:
        environment = Environment(tmp_path_factory.mktemp("elsewhere") / "venv")
        uv("venv", "--python", sys.executable, environment.folder)
        return environment

    return make


@pytest.fixture(scope="session")
def wheel(uv: RunUv, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--wheel", "--out-dir", folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def install(uv: RunUv, wheel: Path, empty_environment: Callable[[], Environment]) -> Callable[..., Environment]:
    """Return a function that installs the wheel with extras, at the locked versions, into a new environment."""

    def make(*extras: str) -> Environment:
        environment = empty_environment()
        locked = environment.folder.parent / "pylock.toml"
        options = [word for extra in extras for word in ("--extra", extra)]
        uv("export", "--frozen", "--no-dev", "--no-emit-project", "--format", "pylock.toml", *options, "-o", locked)
        into = ("pip", "install", "--python", environment.program("python"))
        uv(*into, "-r", locked)
        # Without an index: what the wheel asks for must be what the lock has installed.
        uv(*into, "--no-index", f"cogcube[{','.join(extras)}] @ {wheel.as_uri()}" if extras else wheel)
        return environment

    return make
