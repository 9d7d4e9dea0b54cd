"""References point where they may, and nowhere else: neither to files of this machine nor to other hosts."""

from __future__ import annotations

import json

import pytest

from cube import open_cube
from cube.errors import ReferencesError
from cube.foreign.prefixes import Prefixes
from cube.testing import ObjectStore

ARRAY = {
    "zarr_format": 2,
    "shape": [4],
    "chunks": [4],
    "dtype": "|u1",
    "compressor": None,
    "filters": None,
    "fill_value": None,
    "order": "C",
}


def references_to(target):
    """Return references to the first four bytes of a file."""
    metadata = {
        ".zgroup": '{"zarr_format": 2}',
        "a/.zarray": json.dumps(ARRAY),
        "a/.zattrs": '{"_ARRAY_DIMENSIONS": ["i"]}',
    }
    return {"version": 1, "refs": {**metadata, "a/0": [target, 0, 4]}}


REMOTE = "https://host.example/data/refs.json"

ALLOWED = [
    (REMOTE, (), "https://host.example/data/a.tif"),
    (REMOTE, (), "https://HOST.example/data/deep/a.tif"),
    (REMOTE, (), "a.tif"),
    (REMOTE, (), "deep/a.tif"),
    (REMOTE, ("https://other.example/x",), "https://other.example/x/a.tif"),
    (REMOTE, ("https://other.example/x/",), "https://other.example/x/a.tif?token=1"),
    (REMOTE, ("https://other.example",), "https://other.example/x/a.tif"),
    (REMOTE, ("s3://bucket/x",), "s3a://bucket/x/a.tif"),
    (REMOTE, ("az://container/x",), "abfs://container/x/a.tif"),
    ("s3://bucket/cubes/refs.json", (), "s3://bucket/cubes/a.tif"),
    ("s3://bucket/refs.json", (), "s3://bucket/any/a.tif"),
    ("/data/refs.json", (), "/data/a.tif"),
    ("/data/refs.json", (), "file:///data/a.tif"),
    ("/data/refs.json", (), "a.tif"),
    ("/data/refs.json", ("/else",), "/else/a.tif"),
    ("/data/refs.json", ("https://host.example/",), "https://host.example/a.tif"),
    ("https://host.example/data/refs.parq?sig=abc", (), "https://host.example/data/a.tif"),
]

REFUSED = [
    (REMOTE, (), "https://host.example/database/a.tif"),
    (REMOTE, (), "https://host.example/a.tif"),
    (REMOTE, (), "https://host.example:8443/data/a.tif"),
    (REMOTE, (), "http://host.example/data/a.tif"),
    (REMOTE, (), "https://host.example.evil/data/a.tif"),
    (REMOTE, (), "https://user@evil.example/data/a.tif"),
    (REMOTE, (), "https://host.example@evil.example/data/a.tif"),
    (REMOTE, (), "https://host.example/data/../secret"),
    (REMOTE, (), "https://host.example/data/%2e%2e/secret"),
    (REMOTE, (), "https://host.example/data/..%2Fsecret"),
    (REMOTE, (), "https://host.example/data/..\\secret"),
    (REMOTE, (), "../secret"),
    (REMOTE, (), "http://169.254.169.254/latest/meta-data"),
    (REMOTE, (), "s3://bucket/a.tif"),
    (REMOTE, ("https://other.example/x",), "https://other.example/xy/a.tif"),
    ("s3://bucket/cubes/refs.json", (), "s3://bucket/cubes2/a.tif"),
    ("s3://bucket/cubes/refs.json", (), "s3://other/cubes/a.tif"),
    ("/data/refs.json", (), "/database/a.tif"),
    ("/data/refs.json", (), "/data/../etc/passwd"),
    ("/data/refs.json", (), "../etc/passwd"),
    ("/data/refs.json", (), "file:///etc/passwd"),
    ("/data/refs.json", (), "http://localhost/a.tif"),
    ("/data/refs.json", ("az://container@account/x",), "az://other@account/x/a.tif"),
    # A file of this machine is no business of references from a network, whatever is allowed.
    (REMOTE, ("/",), "/etc/passwd"),
    (REMOTE, ("file:///",), "file:///etc/passwd"),
]


@pytest.mark.parametrize(("document", "allow", "target"), ALLOWED)
def test_what_is_allowed(document, allow, target):
    found = Prefixes(document, allow).resolve(target)
    assert found.endswith(target.removeprefix("file://").removeprefix("HOST")) or found == target


@pytest.mark.parametrize(("document", "allow", "target"), REFUSED)
def test_what_is_refused(document, allow, target):
    with pytest.raises(ReferencesError):
        Prefixes(document, allow).resolve(target)


def test_a_link_does_not_lead_out_of_a_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"1234")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ReferencesError, match="is allowed"):
        Prefixes(str(tmp_path / "data" / "refs.json")).resolve(str(tmp_path / "data" / "link"))


def test_the_error_says_what_to_allow():
    prefixes = Prefixes("/data/refs.json")
    targets = [f"https://host.example/archive/{i}/a.tif?sig=secret" for i in range(3)]
    with pytest.raises(ReferencesError) as caught:
        prefixes.resolve_all(targets)
    assert "allow=['https://host.example/archive/']" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert Prefixes("/data/refs.json", ["https://host.example/archive/"]).resolve_all(targets) == targets


@pytest.mark.parametrize("kind", ["of another folder", "relative"])
def test_references_do_not_read_files_beside_their_folder(tmp_path, write_refs, kind):
    secret = tmp_path.parent / "secret"
    secret.write_bytes(b"1234")
    target = str(secret) if kind == "of another folder" else "../secret"
    with pytest.raises(ReferencesError, match=r"secret"):
        open_cube(write_refs(references_to(target)))
    assert open_cube(write_refs(references_to(str(secret))), allow=[str(secret)]).a.values.tobytes() == b"1234"


@pytest.mark.parametrize("allow", [(), ("/",), ("file:///",)])
def test_references_from_a_network_read_no_file_of_this_machine(tmp_path, write_refs, allow):
    (tmp_path / "secret").write_bytes(b"1234")
    for target in (str(tmp_path / "secret"), f"file://{tmp_path}/secret"):
        write_refs(references_to(target))
        with (
            ObjectStore(tmp_path) as store,
            pytest.raises(ReferencesError, match="a file of this machine: references that come over a network may not"),
        ):
            open_cube(f"{store.url}/refs.json", allow=allow)


def test_references_from_a_network_read_what_lies_beside_them(tmp_path, write_refs):
    (tmp_path / "beside").write_bytes(b"1234")
    write_refs(references_to("beside"))
    with ObjectStore(tmp_path) as store:
        assert open_cube(f"{store.url}/refs.json").a.values.tobytes() == b"1234"
