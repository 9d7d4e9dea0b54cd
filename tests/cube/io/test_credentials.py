from __future__ import annotations

import pytest

from cube.io.credentials import AddressError, azure_access, bucket_access
from tests.services import only_variables

KEY, SAS = "c2VjcmV0", "sv=1&sp=r&sig=secret"


@pytest.fixture
def environ(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    with only_variables(monkeypatch) as set_only:
        yield set_only


@pytest.mark.parametrize(
    ("variables", "signer"),
    [
        ({}, None),
        ({"AZURE_STORAGE_ACCOUNT_KEY": KEY}, "AZURE_STORAGE_ACCOUNT_KEY"),
        ({"AZURE_STORAGE_SAS_TOKEN": SAS}, "AZURE_STORAGE_SAS_TOKEN"),
        ({"AZURE_STORAGE_SAS_TOKEN": SAS, "AZURE_STORAGE_ACCOUNT_KEY": KEY}, "AZURE_STORAGE_ACCOUNT_KEY"),
        ({"AZURE_USE_AZURE_CLI": "true"}, "AZURE_USE_AZURE_CLI"),
        ({"AZURE_CLIENT_ID": "me"}, "AZURE_CLIENT_ID"),
        ({"AZURE_SKIP_SIGNATURE": "false"}, "AZURE_SKIP_SIGNATURE"),
        ({"AZURE_SKIP_SIGNATURE": "true", "AZURE_STORAGE_ACCOUNT_KEY": KEY}, None),
        ({"AZURE_SKIP_SIGNATURE": "false", "AZURE_STORAGE_ACCOUNT_KEY": KEY}, "AZURE_STORAGE_ACCOUNT_KEY"),
        ({"AZURE_STORAGE_ACCOUNT_KEY": ""}, None),
    ],
)
def test_who_signs_for_azure(environ, variables, signer):
    environ(AZURE_STORAGE_ACCOUNT_NAME="mine", **variables)
    access = azure_access("c")
    assert (access.account, access.container, access.signer) == ("mine", "c", signer)
    assert access.endpoint == "https://mine.blob.core.windows.net"
    assert access.key == (KEY if signer == "AZURE_STORAGE_ACCOUNT_KEY" else None)
    assert access.sas == (SAS if signer == "AZURE_STORAGE_SAS_TOKEN" else None)
    assert "secret" not in repr(access)
    assert KEY not in repr(access)


@pytest.mark.parametrize(
    ("place", "account", "endpoint"),
    [
        ("other", "other", "https://other.blob.core.windows.net"),
        ("other.dfs.core.windows.net", "other", "https://other.blob.core.windows.net"),
        ("other.blob.core.windows.net", "other", "https://other.blob.core.windows.net"),
        ("Other.dfs.core.windows.net", "other", "https://other.blob.core.windows.net"),
        ("other.dfs.core.chinacloudapi.cn", "other", "https://other.blob.core.chinacloudapi.cn"),
    ],
)
def test_a_url_may_name_the_account(environ, place, account, endpoint):
    environ()
    access = azure_access(f"c@{place}")
    assert (access.account, access.container, access.endpoint, access.signer) == (account, "c", endpoint, None)
    environ(AZURE_STORAGE_ACCOUNT_KEY=KEY)
    assert azure_access(f"c@{place}").key == KEY
    environ(AZURE_STORAGE_ACCOUNT_NAME="other", AZURE_STORAGE_ACCOUNT_KEY=KEY)
    assert azure_access(f"c@{place}").key == KEY


@pytest.mark.parametrize(
    "variables",
    [
        {"AZURE_STORAGE_ACCOUNT_KEY": KEY},
        {"AZURE_STORAGE_SAS_TOKEN": SAS},
        {"AZURE_STORAGE_CONNECTION_STRING": f"AccountName=mine;AccountKey={KEY}"},
    ],
)
def test_secrets_of_one_account_are_kept_from_another(environ, variables):
    environ(AZURE_STORAGE_ACCOUNT_NAME="mine", AZURE_STORAGE_ENDPOINT="http://mine.example", **variables)
    access = azure_access("c@other.dfs.core.windows.net")
    assert (access.key, access.sas, access.signer, access.kept_from) == (None, None, None, "mine")
    assert access.endpoint == "https://other.blob.core.windows.net"
    assert access.connection_string == "BlobEndpoint=https://other.blob.core.windows.net;AccountName=other"
    assert "set AZURE_STORAGE_ACCOUNT_NAME=other" in access.advice(403, None)


def test_an_identity_may_have_rights_on_several_accounts(environ):
    environ(AZURE_STORAGE_ACCOUNT_NAME="mine", AZURE_USE_AZURE_CLI="true")
    access = azure_access("c@other.dfs.core.windows.net")
    assert (access.account, access.signer, access.connection_string) == ("other", "AZURE_USE_AZURE_CLI", None)
    assert "Storage Blob Data Reader" in access.advice(403, None)


@pytest.mark.parametrize(
    ("text", "account", "endpoint", "key", "sas"),
    [
        (f"AccountName=a;AccountKey={KEY}==", "a", "https://a.blob.core.windows.net", f"{KEY}==", None),
        (
            f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey={KEY};EndpointSuffix=core.chinacloudapi.cn",
            *("a", "http://a.blob.core.chinacloudapi.cn", KEY, None),
        ),
        (f"BlobEndpoint=https://a.example/;SharedAccessSignature={SAS}", "a", "https://a.example", None, SAS),
        (f"blobendpoint=http://127.0.0.1:1/a;accountkey={KEY};", "a", "http://127.0.0.1:1/a", KEY, None),
        ("BlobEndpoint=https://a.example", "a", "https://a.example", None, None),
    ],
)
def test_connection_strings(environ, text, account, endpoint, key, sas):
    environ(AZURE_STORAGE_CONNECTION_STRING=text, AZURE_STORAGE_ACCOUNT_KEY="other", AZURE_STORAGE_ACCOUNT_NAME="o")
    access = azure_access("c")
    assert (access.account, access.endpoint, access.key, access.sas) == (account, endpoint, key, sas)
    assert access.signer == ("AZURE_STORAGE_CONNECTION_STRING" if key or sas else None)


@pytest.mark.parametrize(
    ("netloc", "variables", "message"),
    [
        ("", {}, "write it as az://container/folder/name.tif"),
        ("@account", {}, "write it as az://container/folder/name.tif"),
        ("c", {}, "set AZURE_STORAGE_ACCOUNT_NAME, or write abfss://c@ACCOUNT.dfs.core.windows.net"),
        ("c@evil.example", {}, "'evil.example' is no storage account"),
        ("c@mine.evil.example", {"AZURE_STORAGE_ACCOUNT_NAME": "mine"}, "is no storage account"),
        ("c@mine.dfs.core.windows.net.evil.example", {}, "is no storage account"),
        ("c", {"AZURE_STORAGE_CONNECTION_STRING": "nonsense"}, "holds neither AccountName= nor BlobEndpoint="),
    ],
)
def test_what_names_no_account_is_told(environ, netloc, variables, message):
    environ(**variables)
    with pytest.raises(AddressError) as caught:
        azure_access(netloc)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "variables", "signer"),
    [
        ("s3", {}, None),
        ("s3", {"AWS_ACCESS_KEY_ID": "id"}, "AWS_ACCESS_KEY_ID"),
        ("s3a", {"AWS_WEB_IDENTITY_TOKEN_FILE": "file"}, "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ("s3", {"AWS_ACCESS_KEY_ID": "id", "AWS_SKIP_SIGNATURE": "true"}, None),
        ("s3", {"AWS_SKIP_SIGNATURE": "false"}, "AWS_SKIP_SIGNATURE"),
        ("gs", {}, None),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": "file"}, "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs", {"AWS_ACCESS_KEY_ID": "id"}, None),
    ],
)
def test_who_signs_for_buckets(environ, scheme, variables, signer):
    environ(**variables)
    assert bucket_access(scheme, "b").signer == signer


@pytest.mark.parametrize("netloc", ["", "me@b"])
def test_what_names_no_bucket_is_told(netloc):
    with pytest.raises(AddressError, match="write it as s3://bucket/folder"):
        bucket_access("s3", netloc)


def test_googles_own_login_is_found(environ, tmp_path):
    environ()
    for folder in (tmp_path / ".config" / "gcloud", tmp_path / "gcloud"):
        folder.mkdir(parents=True)
        (folder / "application_default_credentials.json").write_text("{}")
    assert bucket_access("gs", "b").signer == "`gcloud auth application-default login`"
    environ(GOOGLE_SKIP_SIGNATURE="true")
    assert bucket_access("gs", "b").signer is None


def test_what_a_sas_token_says_of_itself_is_told_without_it(environ):
    def advice(token):
        environ(AZURE_STORAGE_ACCOUNT_NAME="mine", AZURE_STORAGE_SAS_TOKEN=token)
        return azure_access("c").advice(403, None)

    assert "expired at 2020-01-01T00:00:00Z: get one for the container" in advice(
        "?se=2020-01-01T00:00:00Z&sp=r&sig=X1Y"
    )
    assert "expired at 2020-01-01: get" in advice("se=2020-01-01&sp=r&sig=X1Y")
    assert "gives the rights 'w', where reading needs 'r'" in advice("se=2999-01-01&sp=w&sig=X1Y")
    assert "names no rights" in advice("nonsense")
    assert "X1Y" not in advice("se=soon&sp=w&sig=X1Y")
