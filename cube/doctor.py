"""What this machine has and lacks: `cube doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from cube.errors import CubeError
from cube.io import loop
from cube.io.ranges import read_head
from cube.io.stores import redact
from cube.settings import get_settings

_LIBRARIES = ("xarray", "zarr", "obstore", "imagecodecs", "pyarrow", "rasterio", "odc-geo")
_EXTRAS = {
    "dask": ("dask", "distributed"),
    "server": ("xpublish", "uvicorn"),
    "catalog": ("intake", "intake-xarray"),
    "kerchunk": ("kerchunk", "imagecodecs-numcodecs"),
}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CREDENTIALS = {
    "Azure": (
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_CLIENT_ID",
        "AZURE_STORAGE_ACCOUNT_NAME",
    ),
    "AWS": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
    "Google": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT"),
}
_PORT = 9000
_TRIES = 5


def examine(url: str | None = None) -> list[tuple[str, str, bool]]:
    """Return what was found: (what, finding, whether it is well). Credentials are named, never shown.

    Args:
        url: An object to measure the first-byte time of.
    """
    findings = [
        (
            "Python",
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            sys.version_info >= (3, 12),
        ),
        ("cores", str(os.cpu_count()), True),
        ("cogcube", _version("cogcube"), True),
        ("libraries", ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES), True),
        *[_extra(extra, names) for extra, names in _EXTRAS.items()],
        *_shadows(),
        _disk(),
        _port(),
        ("proxies", _named(_PROXIES, show=True) or "none set", True),
        ("certificates", _named(_CERTIFICATES, show=True) or "the system's own", True),
        *[
            (f"{cloud} credentials", _named(names) or "none in the environment", True)
            for cloud, names in _CREDENTIALS.items()
        ],
        ("settings", ", ".join(sorted(key for key in os.environ if key.startswith("CUBE_"))) or "all defaults", True),
    ]
    return [*findings, *([_first_byte(url)] if url else [])]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _extra(extra: str, names: tuple[str, ...]) -> tuple[str, str, bool]:
    if all(_version(name) for name in names):
        return f"extra {extra}", ", ".join(f"{name} {_version(name)}" for name in names), True
    return f"extra {extra}", f"not installed: pip install 'cogcube[{extra}]'", True


def _shadows() -> list[tuple[str, str, bool]]:
    return [
        ("folder", f"{path} hides the installed package of that name from scripts run here: rename it", False)
        for path in (Path.cwd() / "cube.py", Path.cwd() / "server.py")
        if path.exists()
    ]


def _disk() -> tuple[str, str, bool]:
    folder = get_settings().cache_dir
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    return "disk", f"{free / 1e9:.1f} GB free for the cache in {folder}", free > 1e9


def _port() -> tuple[str, str, bool]:
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: connections of one that has just ended take no port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError as error:
            return "port", f"{_PORT} is taken ({error.strerror}): use cube serve --port", False
    return "port", f"{_PORT} is free", True


def _named(names: tuple[str, ...], *, show: bool = False) -> str:
    found = [name for each in names for name in (each, each.lower()) if os.environ.get(name)]
    return ", ".join(f"{name}={_without_password(os.environ[name])}" if show else f"{name} (set)" for name in found)


def _without_password(text: str) -> str:
    # A proxy may stand without a scheme (user:password@host:8080), and its password may hold any character.
    return re.sub(r"^([A-Za-z][\w+.-]*://)?.*@", r"\1…@", text)


def _first_byte(url: str) -> tuple[str, str, bool]:
    seconds = []
    try:
        for _ in range(_TRIES):
            began = time.perf_counter()
            loop.run(read_head(url, 1024))
            seconds.append(time.perf_counter() - began)
    except CubeError as error:
        return "first byte", redact(str(error)), False
    first, rest = seconds[0] * 1e3, statistics.median(seconds[1:]) * 1e3
    far = "; far away: compute near the data, or use overviews" if rest > 150 else ""
    return (
        "first byte",
        f"{rest:.0f} ms (median of {_TRIES - 1}; {first:.0f} ms with connecting) from {redact(url)}{far}",
        True,
    )


def as_json(findings: list[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    """Return the findings as JSON values."""
    return [{"what": what, "finding": finding, "well": well} for what, finding, well in findings]
