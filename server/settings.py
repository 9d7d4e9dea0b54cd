"""One frozen `ServerSettings`, read from `CUBE_SERVER_*` environment variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class ServerSettings(BaseSettings):
    """Limits of the server; each field is the variable `CUBE_SERVER_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="CUBE_SERVER_", frozen=True, extra="ignore")

    chunk_cache_bytes: int = Field(256 * MIB, ge=0)
    """Encoded chunks kept in memory, least recently used dropped first."""
    refresh_s: float = Field(5.0, ge=0)
    """How old the server's knowledge of a cube's current version may be."""
