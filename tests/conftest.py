"""What all tests share: programs that may be missing, the real data, and an environment of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from cube.settings import get_settings

ROOT = Path(__file__).parents[1]

# A deadline is a timed assertion, and the machine may be busy.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True, scope="session")
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache folder out of the tests, and a proxy out of requests to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
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
        path = shutil.which(name)
        if path:
            return Path(path)
        reason = f"needs the program {name}: {install}"
        if os.environ.get("CUBE_REQUIRE") == "1":
            pytest.fail(reason)
        return pytest.skip(reason)

    return find


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real COGs and STAC items, or skip where there is none."""
    folder = Path(os.environ.get("CUBE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "MANIFEST.csv").is_file():
        pytest.skip(f"no real data in {folder}: set CUBE_TEST_DATA to its folder")
    return folder.resolve()
