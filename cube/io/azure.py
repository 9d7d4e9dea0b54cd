"""Objects in Azure through adlfs and Azure's own client: what obstore cannot sign for, as whoever `az login` left."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from cube.errors import MissingExtraError
from cube.io import loop
from cube.io.answer import Answer, RefusedError, connection_error, first_line
from cube.io.credentials import AzureAccess, refusal
from cube.settings import get_settings

if TYPE_CHECKING:
    from azure.storage.blob.aio import BlobServiceClient


class AdlfsStore:
    """A container of Azure; a path is a blob's name.

    Raises:
        MissingExtraError: adlfs is not installed.
    """

    def __init__(self, access: AzureAccess) -> None:
        if importlib.util.find_spec("adlfs") is None:
            raise MissingExtraError("CUBE_AZURE_CLIENT=adlfs", "azure")
        self._access = access

    def __reduce__(self) -> Any:
        raise TypeError("a store holds credentials and connections, and is never pickled: pickle the URL")

    @property
    def host(self) -> str:
        """The account's address."""
        return self._access.host

    async def get(
        self,
        path: str,
        start: int,
        stop: int,
        *,
        if_match: str | None = None,
        on_head: Callable[[], None] | None = None,
    ) -> Answer:
        """Return the bytes start:stop of a blob; see `Store`."""
        await _import_libraries()
        from azure.core import MatchConditions

        watch = _Watch()
        options: dict[str, Any] = {"offset": start, "length": stop - start, "max_concurrency": 1, **watch.options()}
        if if_match is not None:
            options |= {"etag": if_match, "match_condition": MatchConditions.IfNotModified}
        try:
            async with asyncio.timeout(get_settings().timeout_s):
                blob = _client(self._access).get_blob_client(self._access.container, path)
                answer = await blob.download_blob(**options)
                if on_head is not None:
                    on_head()
                data: bytes = await answer.readall()
        except _failures() as error:
            raise self._refusal(error) from None
        found = answer.properties
        return Answer(
            data=memoryview(data),
            size=int(str(found.content_range).rpartition("/")[2]),
            etag=found.etag.strip('"') if found.etag else None,
            last_modified=found.last_modified,
            first_byte_s=watch.first_byte_s,
        )

    async def pages(self, prefix: str, *, after: str | None) -> AsyncIterator[list[str]]:
        """Yield the names that begin with `prefix`, in order, those behind `after` only.

        Raises:
            RefusedError: As for `get`.
        """
        await _import_libraries()
        try:
            container = _client(self._access).get_container_client(self._access.container)
            names = container.list_blob_names(name_starts_with=prefix, **_no_retries())
            async for page in names.by_page():
                yield [name async for name in page if after is None or name > after]
        except _failures() as error:
            raise self._refusal(error) from None

    def _refusal(self, error: Exception) -> RefusedError:
        from azure.core.exceptions import ClientAuthenticationError, HttpResponseError

        brief = first_line(error)
        if isinstance(error, HttpResponseError) and error.status_code and error.response is not None:
            code = getattr(error, "error_code", None)
            wait: str = getattr(error.response, "headers", {}).get("Retry-After", "")
            wait_s = float(wait) if wait.isdecimal() else None
            name = None if code is None else str(getattr(code, "value", code))
            return refusal(self._access, error.status_code, name, retry_after_s=wait_s)
        if isinstance(error, ClientAuthenticationError):
            refused = refusal(self._access, 401, None)
            refused.hint = f"no credentials could be got ({brief}); {refused.hint}"
            return refused
        if isinstance(error, ValueError):
            return RefusedError(brief, is_transient=False)
        refused = connection_error(brief or "timed out")
        if "Cannot connect" in brief:
            refused.hint = self._access.advice(None, None)
        return refused


class _Watch:
    """Sees one request go out and its answer come in, and lets no second one out."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._sent = 0
        self.first_byte_s = 0.0

    def options(self) -> dict[str, Any]:
        return {"raw_request_hook": self._sends, "raw_response_hook": self._answers, **_no_retries()}

    def _sends(self, _request: Any) -> None:
        self._sent += 1
        if self._sent > 1:  # Azure's client asks again for a body that was cut off, whatever its retries are set to
            raise RefusedError("the connection broke in the middle of the answer", is_transient=True)

    def _answers(self, _response: Any) -> None:
        self.first_byte_s = time.perf_counter() - self._began


async def _import_libraries() -> None:
    """Import what takes a second or two beside the I/O loop, where others read meanwhile."""
    if "adlfs" not in sys.modules:
        await asyncio.to_thread(importlib.import_module, "adlfs")


def _no_retries() -> dict[str, Any]:
    """Return options of one call: attempts.py alone retries, and the client's own first pause is 15 s."""
    settings = get_settings()
    return {
        "retry_total": 0,
        "connection_timeout": settings.connect_timeout_s,
        "read_timeout": settings.timeout_s,
    }


def _failures() -> tuple[type[Exception], ...]:
    from aiohttp import ClientError
    from azure.core.exceptions import AzureError

    return AzureError, ClientError, OSError, ValueError  # TimeoutError is an OSError


def _client(access: AzureAccess) -> BlobServiceClient:
    """Return this process's client of an account, which lives and is closed on the I/O loop."""
    clients = loop.loop_state("adlfs", dict[Any, _Client], close=_close)
    of = (access.endpoint, access.key, access.sas, access.signer)
    if of not in clients:
        clients[of] = _Client(access)
    return clients[of].service


class _Client:
    """What adlfs makes of the credentials: it knows all of Azure's ways to sign."""

    def __init__(self, access: AzureAccess) -> None:
        from adlfs import AzureBlobFileSystem

        connection_string = access.connection_string
        options: dict[str, Any] = {"connection_string": connection_string}
        if connection_string is None:
            host = access.endpoint.partition("://")[2]
            options = {"account_name": access.account, "account_host": host, "anon": False}
        files = AzureBlobFileSystem(
            asynchronous=True, loop=asyncio.get_running_loop(), skip_instance_cache=True, **options
        )
        self.service: BlobServiceClient = files.service_client
        self._credential = files.credential
        # Its finalizers wait for the loop; when the process ends, the loop may have stopped for good by then.
        for each in weakref.getweakrefs(files):
            if isinstance(each.__callback__, weakref.finalize):
                each.__callback__.detach()

    async def close(self) -> None:
        await self.service.close()
        if hasattr(self._credential, "close"):
            await self._credential.close()


async def _close(clients: dict[Any, _Client]) -> None:
    for each in clients.values():
        await each.close()
