"""Objects in Azure, S3 and Google stores, and local files, through obstore."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from cube.io.answer import Answer, RefusedError, connection_error, first_line
from cube.io.credentials import AzureAccess, BucketAccess, refusal
from cube.settings import get_settings

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_GENERIC = re.compile(r"^Generic \w+ error: ")
_CAUSE = re.compile(r'\b(?:error|message): "((?:[^"\\]|\\.)*)"')
_CUT_OFF = re.compile(r"Requested \d+\.\.\d+, got \d+\.\.\d+")
_OF_AN_IDENTITY = re.compile(r"token request|//169\.254\.|az account get-access-token")
"""What names a request for credentials in an error, which is none of the object's store."""
# attempts.py alone retries: obstore does not retry 429, and two layers of retries multiply.
_NO_RETRIES: Any = {"max_retries": 0}


class ObjectsStore:
    """A bucket, or a folder of this machine; a path is an object's key."""

    def __init__(self, host: str, client: ObjectStore, access: BucketAccess | AzureAccess | None) -> None:
        self._host, self._client, self._access = host, client, access

    def __reduce__(self) -> Any:
        raise TypeError("a store holds credentials and connections, and is never pickled: pickle the URL")

    @property
    def host(self) -> str:
        """The bucket, the Azure account's address, or that it is this machine."""
        return self._host

    async def get(
        self,
        path: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        on_head: Callable[[], None] | None = None,
    ) -> Answer:
        """Return the bytes start:stop of an object; see `Store`."""
        began = time.perf_counter()
        options: Any = {"range": (start, stop)}
        if if_match is not None:
            options["if_match"] = if_match
        try:
            result = await obstore.get_async(self._client, path, options=options)
            first_byte_s = time.perf_counter() - began
            if on_head is not None:
                on_head()
            meta = result.meta
            data = memoryview(await result.bytes_async())
        except (BaseError, OSError, ValueError) as error:  # ValueError: a name that no store can hold
            raise self._refusal(error) from None
        etag = meta["e_tag"]
        return Answer(
            data=data,
            size=meta["size"],
            etag=etag.strip('"') if etag else None,
            last_modified=meta["last_modified"],
            first_byte_s=first_byte_s,
        )

    async def pages(self, prefix: str, *, after: str | None) -> AsyncIterator[list[str]]:
        """Yield the keys that begin with `prefix`, in order, those behind `after` only.

        Raises:
            RefusedError: As for `get`.
        """
        try:
            async for page in obstore.list(self._client, prefix or None, offset=after):
                yield [each["path"] for each in page]
        except (BaseError, OSError, ValueError) as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> RefusedError:
        first, _, details = str(error).partition("\n\nDebug source:")
        # The message holds the URL, which may be signed, and then the answer's body.
        brief = first_line(_GENERIC.sub("", first))
        found = _STATUS.search(first)
        status = int(found[1]) if found else 301 if "Received redirect" in first else None
        if self._access is None:
            return _local_refusal(error, brief)
        if _OF_AN_IDENTITY.search(first):
            refused = refusal(self._access, 401, None)
            refused.hint = f"no credentials could be got ({brief}); {refused.hint}"
            refused.is_transient = status in (429, 500, 503)
            return refused
        if status is not None:
            code = _CODE.search(first)
            return refusal(self._access, status, code[1] if code else None)
        if "HTTP error" in first:
            return self._broken(details)
        return RefusedError(brief, is_transient=_CUT_OFF.search(brief) is not None)

    def _broken(self, details: str) -> RefusedError:
        """Return the error of a connection that could not be made, or broke."""
        causes = _CAUSE.findall(details)
        text = "timed out" if "TimedOut" in details or "kind: Timeout" in details else causes[-1] if causes else ""
        refused = connection_error(first_line(text) or "the connection broke")
        if self._access is not None and "dns error" in details:
            refused.hint = self._access.advice(None, None)
        return refused


def _local_refusal(error: Exception, brief: str) -> RefusedError:
    status = None
    if isinstance(error, FileNotFoundError):
        status = 404
    elif isinstance(error, PreconditionError):
        status = 412
    elif "Requested range was invalid" in brief:
        status = 416
    return RefusedError(brief, status=status, is_transient=False)


def folder_store(folder: str) -> ObjectsStore:
    """Return the store of a local folder."""
    return ObjectsStore("file://", LocalStore(folder), None)


def bucket_store(access: BucketAccess) -> ObjectsStore:
    """Return the store of a bucket of S3 or Google; a client finds the secrets in the variables by itself."""
    make: Any = S3Store if access.cloud == "AWS" else GCSStore
    options = {"client_options": _client_options(), "retry_config": _NO_RETRIES, "skip_signature": not access.signer}
    return ObjectsStore(access.host, make(access.bucket, **options), access)


def azure_store(access: AzureAccess) -> ObjectsStore:
    """Return the store of a container of Azure."""
    options: Any = {"account_name": access.account, "endpoint": access.endpoint}
    if access.key is not None:
        options |= {"account_key": access.key, "credential_type": "access_key"}
    elif access.sas is not None:
        options |= {"sas_key": access.sas, "credential_type": "sas_token"}
    options["skip_signature"] = access.signer is None
    options |= {"client_options": _client_options(), "retry_config": _NO_RETRIES}
    return ObjectsStore(access.host, AzureStore(access.container, **options), access)


def _client_options() -> dict[str, Any]:
    settings = get_settings()
    return {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
        "timeout": timedelta(seconds=settings.timeout_s),
        "pool_max_idle_per_host": str(settings.requests_in_flight),
    }
