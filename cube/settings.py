"""One frozen `Settings`, read once from `CUBE_*` environment variables."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import platformdirs
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cube.errors import SettingsError

KIB = 1024
MIB = 1024 * KIB


class Settings(BaseSettings):
    """Limits and defaults of this process; each field is the variable `CUBE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="CUBE_", frozen=True, extra="ignore")

    requests_in_flight: int = Field(256, ge=1, le=4096)
    """Range requests under way at once, of the whole process."""
    bytes_in_flight: int = Field(512 * MIB, ge=MIB)
    """Encoded bytes requested or waiting for decode, of the whole process."""
    gap_bytes: int = Field(256 * KIB, ge=0)
    """Two ranges of one source this close become one request: a gap that costs less than a round trip."""
    request_bytes: int = Field(32 * MIB, ge=64 * KIB)
    """The largest merged request."""
    header_bytes: int = Field(32 * KIB, ge=KIB)
    """First request of a header scan; holds the header of nearly every COG."""
    max_header_bytes: int = Field(256 * MIB, ge=KIB)
    """A header that needs more is refused."""
    connect_timeout_s: float = Field(10, gt=0)
    timeout_s: float = Field(60, gt=0)
    """For one request, body included."""
    attempts: int = Field(5, ge=1, le=20)
    """Times that a request is tried when the store is busy or the connection breaks."""
    decode_threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    open_manifests: int = Field(32, ge=1)
    """Manifests kept open by this process."""
    max_manifest_json_bytes: int = Field(64 * MIB, ge=KIB)
    block_bytes: int = Field(64 * MIB, ge=MIB)
    """Decoded bytes of one band in a dask block that `chunks="auto"` aims at."""
    cache_dir: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("cogcube")))
    """Where cubes that were built without a path are kept."""


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
