"""Who asks a cloud's store, as the environment says: the account, how requests are signed, and what to set instead.

One rule for all clouds. Requests are signed where a variable says how, else they are anonymous, as public data wants:
looking for an identity of the machine, as the clouds' own tools do, takes seconds on a machine that has none. It is
looked for where `AZURE_SKIP_SIGNATURE`, `AWS_SKIP_SIGNATURE` or `GOOGLE_SKIP_SIGNATURE` is false.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from cube.io.answer import TRANSIENT, RefusedError

_PREFIXES = ("AZURE_", "AWS_", "GOOGLE_")
_TRUE = frozenset({"1", "true", "on", "yes", "y"})
_DOCS = "docs/how_to/object_stores.md"

_KEYS = ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY")
_SIGNATURES = ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY")
_CONNECTION = "AZURE_STORAGE_CONNECTION_STRING"
_AZURE_ADDRESS = (_CONNECTION, "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_AWS_ADDRESS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_ADDRESS = dict.fromkeys(("az", "abfs", "abfss"), _AZURE_ADDRESS) | dict.fromkeys(("s3", "s3a"), _AWS_ADDRESS)
_IDENTITIES: Mapping[str, tuple[str, ...]] = {
    "AZURE": (
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "AZURE_MSI_ENDPOINT",
        "AZURE_IDENTITY_ENDPOINT",
        "AZURE_CREDENTIAL_TYPE",
    ),
    "AWS": (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ),
    "GOOGLE": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ),
}
"""The variables by which obstore finds who signs, cloud by cloud."""
_GCLOUD_LOGIN = Path("gcloud", "application_default_credentials.json")
_AZURE_HOST = re.compile(
    r"([a-z0-9]+)(?:\.z\d\d)?\.(?:blob|dfs)\."
    r"(core\.windows\.net|core\.chinacloudapi\.cn|core\.usgovcloudapi\.net|storage\.azure\.net|fabric\.microsoft\.com)"
)
_PRIVATE = frozenset({"ResourceNotFound", "ContainerNotFound", "PublicAccessNotPermitted"})
"""What Azure says of private containers to who does not sign, as of ones that are not there."""
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")


class AddressError(ValueError):
    """A URL or a variable that names no account or bucket; the message says what to write."""


def address(scheme: str) -> tuple[str | None, ...]:
    """Return what the variables say of where a bucket of a scheme lies; quick, as every request asks."""
    return tuple([os.environ.get(name) for name in _ADDRESS.get(scheme, ())])


def snapshot() -> Mapping[str, str]:
    """Return the variables that may hold credentials, to see later whether they changed."""
    return {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}


def _first(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if os.environ.get(name)), None)


def _signer(cloud: Literal["AZURE", "AWS", "GOOGLE"], names: tuple[str, ...]) -> str | None:
    """Return the variable that says how requests are signed, None where they are not."""
    switch = f"{cloud}_SKIP_SIGNATURE"
    if (wanted := os.environ.get(switch)) and wanted.lower() in _TRUE:
        return None
    return _first(names) or (switch if wanted else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketAccess:
    """How this process asks one bucket of S3 or Google; the secrets stay in the variables that obstore reads."""

    cloud: Literal["AWS", "GOOGLE"]
    bucket: str
    signer: str | None
    """The variable that says who signs; None where nobody does."""

    @property
    def host(self) -> str:
        """The bucket, which is what these clouds limit."""
        return f"{'s3' if self.cloud == 'AWS' else 'gs'}://{self.bucket}"

    def advice(self, status: int | None, code: str | None) -> str:
        """Return what to do about a refusal, as the end of a sentence; empty where nothing is to be set."""
        if code == "NoSuchBucket":
            return f"there is no bucket {self.bucket!r}"
        if status == 301 or code in {"PermanentRedirect", "AuthorizationHeaderMalformed"}:
            return f"the bucket {self.bucket!r} is of another region: set AWS_REGION to it"
        if status not in (401, 403):
            return ""
        if self.signer is None:
            return _unsigned(f"the bucket {self.bucket!r}", _HOW_TO_SIGN[self.cloud])
        return (
            f"requests are signed by {self.signer}, which has no right to read this object of the bucket "
            f"{self.bucket!r}, or is wrong or expired (who may not list is told so of absent objects too); for public "
            f"data set {self.cloud}_SKIP_SIGNATURE=true (see {_DOCS})"
        )


_HOW_TO_SIGN = {
    "AZURE": "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_USE_AZURE_CLI=true after `az login`",
    "AWS": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env` prints those "
    "of a profile), or AWS_SKIP_SIGNATURE=false on a machine that has a role",
    "GOOGLE": "GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
}


def _unsigned(what: str, how: str) -> str:
    return (
        f"requests for {what} are not signed, as no credentials are set, and it is not public; set {how}, in every "
        f"process that reads (see {_DOCS})"
    )


def bucket_access(scheme: str, netloc: str) -> BucketAccess:
    """Return how the bucket of an s3:// or gs:// URL is asked.

    Raises:
        AddressError: The URL names no bucket.
    """
    if not netloc or "@" in netloc:
        raise AddressError(f"write it as {scheme}://bucket/folder/name.tif")
    if scheme.startswith("s3"):
        return BucketAccess(cloud="AWS", bucket=netloc, signer=_signer("AWS", _IDENTITIES["AWS"]))
    signer = _signer("GOOGLE", _IDENTITIES["GOOGLE"])
    if signer is None and "GOOGLE_SKIP_SIGNATURE" not in os.environ and _gcloud_login().is_file():
        signer = "`gcloud auth application-default login`"
    return BucketAccess(cloud="GOOGLE", bucket=netloc, signer=signer)


def _gcloud_login() -> Path:
    """Return the file where obstore looks for the login of Google's own tool."""
    folder = os.environ.get("APPDATA") if os.name == "nt" else None
    return (Path(folder) if folder else Path.home() / ".config") / _GCLOUD_LOGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureAccess:
    """How this process asks one container of an Azure storage account."""

    account: str
    container: str
    endpoint: str
    """URL of the account's Blob service."""
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)
    signer: str | None
    """The variable that says who signs; None where nobody does. Neither key nor SAS: an identity does."""
    kept_from: str | None = None
    """The account to which the credentials belong that are set, where it is another one and so does not get them."""

    @property
    def host(self) -> str:
        """The account's address, as accounts are what Azure limits."""
        return self.endpoint

    def advice(self, status: int | None, code: str | None) -> str:
        """Return what to do about a refusal, as the end of a sentence; empty where nothing is to be set."""
        if status is None:
            return f"check that there is an account {self.account!r} (see {_DOCS})"
        if status == 404 and code == "ContainerNotFound":
            return f"there is no container {self.container!r} in the account {self.account!r}"
        return self._advice_on_access() if status in (401, 403) else ""

    def _advice_on_access(self) -> str:
        what = f"the container {self.container!r} of the account {self.account!r}"
        if self.kept_from is not None:
            return (
                f"{what} is not public, and the credentials that are set are those of {self.kept_from!r}: set "
                f"AZURE_STORAGE_ACCOUNT_NAME={self.account} and its key or SAS token (see {_DOCS})"
            )
        if self.signer is None:
            return _unsigned(what, _HOW_TO_SIGN["AZURE"])
        if self.sas is not None:
            return f"the SAS token of {self.signer} {_sas_fault(self.sas)}: get one for {what} (see {_DOCS})"
        if self.key is not None:
            return f"{self.signer} holds no key of the account {self.account!r} (see {_DOCS})"
        return (
            f"who is named by {self.signer} may not read {what}: assign the role Storage Blob Data Reader, or, for "
            f"public data, set AZURE_SKIP_SIGNATURE=true (see {_DOCS})"
        )

    @property
    def connection_string(self) -> str | None:
        """The same as Azure's own libraries take it; None where an identity signs."""
        if self.signer is not None and self.key is None and self.sas is None:
            return None
        parts = {"BlobEndpoint": self.endpoint, "AccountName": self.account}
        if self.key is not None:
            parts["AccountKey"] = self.key
        elif self.sas is not None:
            parts["SharedAccessSignature"] = self.sas.lstrip("?")
        return ";".join(f"{name}={value}" for name, value in parts.items())


def refusal(
    access: BucketAccess | AzureAccess, status: int, code: str | None, *, retry_after_s: float | None = None
) -> RefusedError:
    """Return the error for what a store answered, with what to do about it.

    Args:
        access: How the store was asked.
        status: The HTTP status.
        code: The store's own word for it, as "BlobNotFound".
        retry_after_s: Seconds that the store wants to be left alone; None where it does not say.
    """
    if access.signer is None and code in _PRIVATE:
        status = 403
    text = f"the store answered {status}{f' ({code})' if code else ''}"
    error = RefusedError(text, status=status, retry_after_s=retry_after_s, is_transient=status in TRANSIENT)
    advice = access.advice(status, code)
    error.hint = f"{code}: {advice}" if code and status in (401, 403) else advice
    return error


def _sas_fault(sas: str) -> str:
    """Return what is wrong with a SAS token, by what it says of itself; its signature stays out."""
    fields = {name: values[-1] for name, values in parse_qs(sas.lstrip("?")).items()}
    try:
        expiry = datetime.fromisoformat(fields["se"])
    except (KeyError, ValueError):
        expiry = None
    if expiry is not None and (expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)) < datetime.now(UTC):
        return f"expired at {fields['se']}"
    rights = f"gives the rights {fields['sp']!r}" if "sp" in fields else "names no rights"
    return f"{rights}, where reading needs 'r' and listing 'l', or is of something else, or is damaged"


def azure_access(netloc: str) -> AzureAccess:
    """Return how the container of an az://, abfs:// or abfss:// URL is asked.

    Args:
        netloc: `container`, or `container@account.dfs.core.windows.net` as Spark and Hadoop write it.

    Raises:
        AddressError: Nothing names the account, or what names it is damaged.
    """
    container, _, place = netloc.partition("@")
    if not container:
        raise AddressError("write it as az://container/folder/name.tif")
    named = _named_account(place) if place else None
    own = _own_account(named)
    if own is None:
        raise AddressError(
            f"nothing says whose container {container!r} is: set AZURE_STORAGE_ACCOUNT_NAME, or write "
            f"abfss://{container}@ACCOUNT.dfs.core.windows.net/... (see {_DOCS})"
        )
    if named is not None and named.name != own.name:
        # The key or SAS token of one account is nothing that another should see; an identity may have rights on both.
        kept_from = own.name if own.secret_of is not None else None
        own = named
    else:
        kept_from = None
    signer = _signer("AZURE", _IDENTITIES["AZURE"]) if kept_from is None else None
    key, sas = own.key, own.sas
    if own.secret_of is not None:
        signer = _signer("AZURE", (own.secret_of,))
    if signer is None:
        key = sas = None
    return AzureAccess(
        account=own.name,
        container=container,
        endpoint=own.endpoint,
        key=key,
        sas=sas,
        signer=signer,
        kept_from=kept_from,
    )


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    endpoint: str
    key: str | None = field(default=None, repr=False)
    sas: str | None = field(default=None, repr=False)
    secret_of: str | None = None
    """The variable that holds the key or the SAS token."""


def _named_account(place: str) -> _Account:
    """Return the account of a URL; only Azure's own hosts are asked, as credentials are sent there."""
    found = _AZURE_HOST.fullmatch(place.lower())
    if found is not None:
        return _Account(found[1], f"https://{place.lower().replace('.dfs.', '.blob.')}")
    if _ACCOUNT.fullmatch(place) is not None:
        return _Account(place, f"https://{place}.blob.core.windows.net")
    raise AddressError(f"{place!r} is no storage account: write ACCOUNT.dfs.core.windows.net behind the @")


def _own_account(named: _Account | None) -> _Account | None:
    """Return the account that the variables are for; they are for the one that a URL names where they name none."""
    if text := os.environ.get(_CONNECTION):
        return _connected_account(text)
    name = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not name and named is None:
        return None
    name, endpoint = (named.name, named.endpoint) if not name and named else (name, None)
    endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT") or endpoint
    secret_of = _first(_KEYS + _SIGNATURES)
    secret = os.environ[secret_of] if secret_of else None
    return _Account(
        str(name),
        endpoint or f"https://{name}.blob.core.windows.net",
        secret if secret_of in _KEYS else None,
        secret if secret_of in _SIGNATURES else None,
        secret_of,
    )


def _connected_account(text: str) -> _Account:
    """Return the account of a connection string, which stands above all other variables, as in Azure's libraries."""
    parts = dict(part.strip().split("=", 1) for part in text.split(";") if "=" in part)
    fields = {name.lower(): value for name, value in parts.items()}
    endpoint, name = fields.get("blobendpoint", "").rstrip("/"), fields.get("accountname", "")
    if not endpoint and name:
        scheme = fields.get("defaultendpointsprotocol", "https")
        endpoint = f"{scheme}://{name}.blob.{fields.get('endpointsuffix', 'core.windows.net')}"
    host = urlsplit(endpoint)
    # An emulator has the account in its path, Azure in its name.
    name = name or host.path.strip("/") or (host.hostname or "").partition(".")[0]
    if not endpoint or not name:
        raise AddressError(f"{_CONNECTION} holds neither AccountName= nor BlobEndpoint= (see {_DOCS})")
    key, sas = fields.get("accountkey"), fields.get("sharedaccesssignature")
    return _Account(name, endpoint, key, None if key else sas, _CONNECTION if key or sas else None)
