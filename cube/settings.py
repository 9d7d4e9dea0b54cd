"""One frozen `Settings`, read once from `CUBE_*` environment variables."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cube.errors import SettingsError

KIB = 1024
MIB = 1024 * KIB

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_UNKNOWN_MEMORY = 8 * 1024 * MIB


def _memory_bytes() -> int:
    """Return this machine's memory, or the limit of the container where that is less."""
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int(path.read_text(encoding="ascii")))
    return min(limits, default=_UNKNOWN_MEMORY)


class Settings(BaseSettings):
    """Limits and defaults of this process; each field is the variable `CUBE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="CUBE_", frozen=True, extra="ignore")

    requests_in_flight: int = Field(256, ge=1, le=4096)
    """Range requests under way at once, of the whole process."""
    bytes_in_flight: int = Field(512 * MIB, ge=MIB)
    """Encoded bytes requested or waiting for decode, of the whole process."""
    gap_bytes: int = Field(256 * KIB, ge=0)
    """Two ranges of one source this close become one request: a gap that costs less than a round trip."""
    request_bytes: int = Field(4 * MIB, ge=64 * KIB)
    """The largest merged request: about what a connection brings in a latency, as decoding waits for all of it."""
    header_bytes: int = Field(32 * KIB, ge=KIB)
    """First request of a header scan; holds the header of nearly every COG."""
    max_header_bytes: int = Field(256 * MIB, ge=KIB)
    """A header that needs more is refused."""
    connect_timeout_s: float = Field(10, gt=0)
    timeout_s: float = Field(60, gt=0)
    """For one request, body included."""
    azure_client: Literal["obstore", "adlfs"] = "obstore"
    """What reads az:// URLs; adlfs signs in ways that obstore does not know."""
    attempts: int = Field(5, ge=1, le=20)
    """Times that a request is tried when the store is busy or the connection breaks."""
    hedge_share: float = Field(0.03, ge=0, le=1)
    """Share of requests that may be sent a second time because they are late; 0 sends none, so that counts repeat."""
    decode_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    open_manifests: int = Field(32, ge=1)
    """Manifests kept open by this process."""
    max_manifest_json_bytes: int = Field(64 * MIB, ge=KIB)
    block_bytes: int | None = Field(None, ge=MIB)
    """Decoded bytes of one band in a dask block that `chunks="auto"` aims at; from latency and speed where None."""
    latency_ms: float = Field(50, ge=0)
    """To the first byte of an answer: what predictions assume; `cube tune` measures it, as it does the next three."""
    connection_mb_s: float = Field(50, gt=0)
    """Megabytes a second of one connection to the store."""
    store_mb_s: float = Field(500, gt=0)
    """Megabytes a second of all connections of this machine to the store."""
    decode_mb_s: float = Field(400, gt=0)
    """Decoded megabytes a second of one core."""
    memory_bytes: int = Field(default_factory=_memory_bytes, ge=MIB)
    """Memory that advice counts with: this machine's, or what its container is limited to."""
    cache_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("cogcube")))
    """Where cubes that were built without a path are kept, and tiles."""
    cache_bytes: int = Field(0, ge=0)
    """Tiles kept on this machine's disk, of all processes together; 0 keeps none."""
    offline: bool = False
    """Whether nothing may be fetched: only local files and kept tiles are read."""


@functools.cache
def get_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: A variable has a value that cannot be used.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"CUBE_{'_'.join(str(part) for part in problem['loc']).upper()}={problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        )
        raise SettingsError(f"settings from the environment cannot be used: {problems}") from None
