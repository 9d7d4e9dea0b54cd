"""What folders and globs of object stores name; tests/contract have real stores to list."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.errors import ReadError
from cube.io.listing import _matches, is_listed, list_objects
from cube.settings import get_settings
from tests.services import answering, only_variables


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("s3://bucket", True),
        ("s3://bucket/", True),
        ("az://container/folder", True),
        ("az://container/folder/", True),
        ("az://container/v1.2/", True),
        ("abfss://container@account.dfs.core.windows.net/", True),
        ("gs://bucket/*.tif", True),
        ("gs://bucket/a?.tif", True),
        ("s3://bucket/a.tif", False),
        ("https://host/folder/", False),
        ("https://host/*.tif", False),
        ("/data/*.tif", False),
    ],
)
def test_what_is_listed(href, expected):
    assert is_listed(href) is expected


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("*.tif", "a.tif", True),
        ("*.tif", "a/b.tif", False),
        ("a/*/c.tif", "a/b/c.tif", True),
        ("a/*/c.tif", "a/b/b/c.tif", False),
        ("**/c.tif", "c.tif", True),
        ("**/c.tif", "a/b/c.tif", True),
        ("a/**/c.tif", "a/c.tif", True),
        ("a/**", "a/b/c.tif", True),
        ("a/[bc].tif", "a/b.tif", True),
        ("a/[!bc].tif", "a/b.tif", False),
        ("a?.tif", "ab.tif", True),
        ("*.tif", "a.TIF", False),
    ],
)
def test_globs(pattern, key, expected):
    assert _matches(key.split("/"), pattern.split("/")) is expected


@given(st.lists(st.sampled_from(["a", "b", "c.tif"]), min_size=1, max_size=4))
def test_two_stars_stand_for_any_number_of_folders(names):
    for start, stop in itertools.combinations(range(len(names) + 1), 2):
        assert _matches(names, [*names[:start], "**", *names[stop:]])
        assert _matches(names, [*names[:start], *["*"] * (stop - start), *names[stop:]])


@pytest.mark.parametrize(("status", "requests"), [(503, 3), (400, 1)])
def test_a_listing_is_tried_again_where_that_may_help(monkeypatch, status, requests):
    monkeypatch.setenv("CUBE_ATTEMPTS", "3")
    get_settings.cache_clear()
    with only_variables(monkeypatch) as set_only, answering(status) as (url, asked):
        set_only(AZURE_STORAGE_ACCOUNT_NAME="account", AZURE_STORAGE_ENDPOINT=url)
        with pytest.raises(ReadError, match=rf"az://c/\*: could not be listed: the store answered {status}"):
            list_objects("az://c/*")
    assert len(asked) == requests
    monkeypatch.undo()
    get_settings.cache_clear()
