"""Real object stores that run on this machine: Azurite, Azure's own emulator of Blob storage, and moto's S3."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import numpy as np
import pytest

from cube import build, open_cube
from cube.io import loop, stores
from cube.io.ranges import read_head
from cube.testing.archive import unique_values, write_cog
from tests.absent import absent
from tests.serving import Quiet, serving

ROOT = Path(__file__).parents[1]
NAMES = tuple(f"scene_2024010{day}_{band}.tif" for day in (1, 2) for band in ("nir", "red"))
CREDENTIALS = ("AZURE_", "AWS_", "GOOGLE_")
_AZURITE = ROOT / ".tools" / "node" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


@dataclass(frozen=True, slots=True)
class Azurite:
    """A running Azurite with one account, whose name and key are its own."""

    endpoint: str
    account: str
    key: str

    @property
    def connection_string(self) -> str:
        return f"AccountName={self.account};AccountKey={self.key};BlobEndpoint={self.endpoint};"

    @property
    def address(self) -> dict[str, str]:
        """The variables that say where the account is, and nothing secret."""
        return {"AZURE_STORAGE_ACCOUNT_NAME": self.account, "AZURE_STORAGE_ENDPOINT": self.endpoint}

    def sas(self, container: str, rights: str, *, hours: float = 1) -> str:
        """Return a SAS token for a container, expired where `hours` is negative."""
        from azure.storage.blob import generate_container_sas

        until = datetime.now(UTC) + timedelta(hours=hours)
        since = until - timedelta(days=1)
        return generate_container_sas(
            self.account,
            container,
            account_key=self.key,
            permission=rights,
            expiry=until,
            start=since,
        )

    def make_container(self, name: str, *, public: str | None = None) -> None:
        with self._service() as service:
            service.create_container(name, public_access=public)

    def put(self, container: str, key: str, data: bytes) -> None:
        with self._service() as service:
            service.get_blob_client(container, key).upload_blob(data, overwrite=True)

    def _service(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string)


@dataclass(frozen=True, slots=True)
class Moto:
    """A running S3 with one user, who may read everything."""

    endpoint: str
    user: dict[str, str]
    """The user's credentials as variables."""

    @property
    def address(self) -> dict[str, str]:
        """The variables that say where the service is, and nothing secret."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "eu-central-1"}

    def make_bucket(self, name: str) -> None:
        place = {"LocationConstraint": "eu-central-1"}
        with self._client("s3") as service:
            service.create_bucket(Bucket=name, CreateBucketConfiguration=place)

    def put(self, bucket: str, key: str, data: bytes, *, public: bool = False) -> None:
        with self._client("s3") as service:
            service.put_object(Bucket=bucket, Key=key, Body=data, ACL="public-read" if public else "private")

    @contextlib.contextmanager
    def checking_keys(self) -> Iterator[None]:
        """Check keys and signatures of all requests, which moto else does of none, while this lasts."""
        self._check_after(0)
        try:
            yield
        finally:
            self._check_after(1 << 30)

    def _check_after(self, requests: int) -> None:
        url, plain = f"{self.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, str(requests).encode(), plain)
        urllib.request.urlopen(request, timeout=30).close()

    @contextlib.contextmanager
    def _client(self, service: str) -> Iterator[Any]:
        import boto3

        keys = {name.lower(): value for name, value in self.user.items()}
        client = boto3.client(service, endpoint_url=self.endpoint, region_name="eu-central-1", **keys)
        try:
            yield client
        finally:
            client.close()


def write_scenes(folder: Path) -> Path:
    """Write the small archive of NAMES, every pixel of which has a number of its own."""
    for seed, name in enumerate(NAMES):
        write_cog(folder / name, unique_values((200, 220), "uint16", seed), blocksize=128, OVERVIEW_COUNT=1, nodata=0)
    return folder


def assert_same_pixels(cube: Any, files: Path, folder: Path) -> None:
    """Compare a cube with that of the files on the disk, for which there is room in `folder`."""
    local = open_cube(build(files, to=folder / "local.cube"), mask_and_scale=False)
    found = open_cube(cube, mask_and_scale=False)
    assert set(found.data_vars) == set(local.data_vars) == {"nir", "red"}
    np.testing.assert_array_equal(found.time.values, local.time.values)
    for band, values in local.data_vars.items():
        np.testing.assert_array_equal(found[band].values, values.values)


def read_first(href: str) -> bytes:
    """Return the first 16 bytes of an object."""
    return loop.run(read_head(href, 16)).data.tobytes()


def assert_no_secret(text: str | bytes, secret: str) -> None:
    """Look for a secret as it is and as URLs write it, and for the signature of a SAS token alone."""
    data = text if isinstance(text, bytes) else text.encode()
    (bare,) = parse_qs(secret)["sig"] if "sig=" in secret else (secret,)
    for part in (secret, bare, quote(bare, safe="")):
        assert part.encode() not in data


@contextlib.contextmanager
def only_variables(patch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Give a function that sets variables of the clouds, all others unset, and forgets what was opened before."""

    def set_only(**variables: str) -> None:
        for name in [each for each in os.environ if each.startswith(CREDENTIALS) and each not in variables]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        stores._bucket.cache_clear()

    set_only()
    try:
        yield set_only
    finally:
        stores._bucket.cache_clear()


@contextlib.contextmanager
def answering(status: int, body: bytes = b"", *, cut: int = 0, **headers: str) -> Iterator[tuple[str, list[Any]]]:
    """Give one answer to all requests, `cut` bytes short; the URL, and the headers of the requests that came."""
    asked: list[Any] = []

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            asked.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # or a client may send its next request to who has gone
            self.end_headers()
            self.wfile.write(body[: len(body) - cut])
            self.close_connection = True

    with serving(Handler) as url:
        yield f"{url}/account", asked


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    """Run Azurite; skip where it is not installed, or fail where CUBE_REQUIRE=1."""
    node = shutil.which("node")
    if node is None or not _AZURITE.is_file():
        reason = "needs Azurite: sh scripts/services.sh"
        absent(reason)
    account, key = f"cube{secrets.token_hex(4)}", base64.b64encode(secrets.token_bytes(64)).decode()
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--extentMemoryLimit", "1024"]
    flags = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    command = [node, str(_AZURITE), *options, *flags]
    with _serving(command, r"listens on (http://\S+)", {"AZURITE_ACCOUNTS": f"{account}:{key}"}) as url:
        yield Azurite(f"{url}/{account}", account, key)


@contextlib.contextmanager
def moto() -> Iterator[Moto]:
    """Run moto's S3."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with _serving(command, r"Running on (http://\S+)", {}) as url:
        anyone = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        with Moto(url, anyone)._client("iam") as users:
            users.create_user(UserName="reader")
            users.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(policy))
            key = users.create_access_key(UserName="reader")["AccessKey"]
        user = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        yield Moto(url, user)


@contextlib.contextmanager
def _serving(command: list[str], says: str, variables: dict[str, str]) -> Iterator[str]:
    """Run a service until the block ends, and give the URL that it prints."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(CREDENTIALS)}
    service = subprocess.Popen(
        command, env=inherited | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert service.stdout is not None
        printed = []
        for line in service.stdout:
            printed.append(line)
            if found := re.search(says, line):
                # What it prints later must be taken too, or its pipe is full one day.
                threading.Thread(target=_drain, args=(service.stdout,), daemon=True).start()
                yield found[1]
                return
        pytest.fail(f"{command[0]} did not start:\n{''.join(printed)}")
    finally:
        service.terminate()
        service.wait(timeout=30)
        service.stdout.close()


def _drain(lines: Iterable[str]) -> None:
    with contextlib.suppress(ValueError):  # it is closed
        for _ in lines:
            pass
