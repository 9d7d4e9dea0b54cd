"""Icechunk repositories: the tip of their main branch, as a Zarr store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cube.errors import MissingExtraError, OfflineError, ReferencesError
from cube.foreign.find import Foreign
from cube.foreign.prefixes import Prefixes
from cube.io.credentials import azure_access, bucket_access
from cube.io.stores import local_path, redact
from cube.settings import get_settings

if TYPE_CHECKING:
    from zarr.abc.store import Store

_BRANCH = "main"


def open_icechunk(foreign: Foreign, *, version: str | None = None) -> tuple[Store, str]:
    """Return a repository's store, read-only, and its version: a snapshot's id; blocks.

    Args:
        foreign: The repository.
        version: A snapshot's id; the tip of the main branch where None.

    Raises:
        MissingExtraError: Icechunk is not installed.
        ReferencesError: It is no repository, or its chunks lie where they may not.
    """
    try:
        import icechunk
    except ImportError:
        raise MissingExtraError(f"the Icechunk repository {redact(foreign.url)}", "icechunk") from None
    if local_path(foreign.url) is None and get_settings().offline:
        raise OfflineError(redact(foreign.url), "is on a network, and CUBE_OFFLINE=1 lets nothing be fetched")
    try:
        storage = _storage(icechunk, foreign.url)
        config = icechunk.Repository.fetch_config(storage)
        containers = list((config.virtual_chunk_containers or {}) if config is not None else ())
        prefixes = Prefixes(foreign.url, foreign.allow)
        for prefix in containers:
            prefixes.resolve(prefix)
        granted = icechunk.containers_credentials({prefix: _access(icechunk, prefix) for prefix in containers})
        repository = icechunk.Repository.open(storage, authorize_virtual_chunk_access=granted)
        session = (
            repository.readonly_session(_BRANCH)
            if version is None
            else repository.readonly_session(snapshot_id=version)
        )
    except icechunk.IcechunkError as error:
        reason = redact(str(error).strip().split("\n", 1)[0])
        raise ReferencesError(f"the Icechunk repository {redact(foreign.url)} cannot be opened: {reason}") from None
    store: Store = session.store
    return store, str(session.snapshot_id)


def _access(icechunk: Any, prefix: str) -> Any:
    """Return how the chunks below a prefix are read: as everything else of that store."""
    parts = urlsplit(prefix)
    match parts.scheme:
        case "s3" | "s3a":
            is_signed = bucket_access("s3", parts.netloc).signer is not None
            return icechunk.s3_from_env_credentials() if is_signed else icechunk.s3_anonymous_credentials()
        case "gs" | "gcs":
            is_signed = bucket_access("gs", parts.netloc).signer is not None
            return icechunk.gcs_from_env_credentials() if is_signed else icechunk.GcsCredentials.Anonymous()
        case "az" | "abfs" | "abfss":
            is_signed = azure_access(parts.netloc).signer is not None
            return icechunk.azure_from_env_credentials() if is_signed else icechunk.azure_anonymous_credentials()
        case "http" | "https":
            return icechunk.credentials.HttpAccess
    return icechunk.credentials.LocalFileSystemAccess


def _storage(icechunk: Any, url: str) -> Any:
    path = local_path(url)
    if path is not None:
        return icechunk.local_filesystem_storage(str(path))
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    match parts.scheme:
        case "http" | "https":
            return icechunk.http_storage(url)
        case "s3" | "s3a":
            is_signed = bucket_access("s3", parts.netloc).signer is not None
            return icechunk.s3_storage(bucket=parts.netloc, prefix=prefix, anonymous=not is_signed, from_env=is_signed)
        case "gs" | "gcs":
            is_signed = bucket_access("gs", parts.netloc).signer is not None
            return icechunk.gcs_storage(bucket=parts.netloc, prefix=prefix, anonymous=not is_signed, from_env=is_signed)
        case "az" | "abfs" | "abfss":
            access = azure_access(parts.netloc)
            return icechunk.azure_storage(
                account=access.account,
                container=access.container,
                prefix=prefix,
                access_key=access.key,
                sas_token=access.sas,
                anonymous=True if access.signer is None else None,
            )
    raise ReferencesError(
        f"{redact(url)}: Icechunk repositories are read from disks, http(s)://, s3://, gs:// and az://"
    )
