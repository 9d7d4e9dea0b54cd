from __future__ import annotations

import pickle

import pytest

import cube.errors as module
from cube.errors import CubeError, MissingExtraError, SelectionError, SourceError

CLASSES = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, CubeError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_errors_survive_the_way_to_another_process(kind):
    if kind is MissingExtraError:
        error = kind("a Dask cluster", "dask")
    elif issubclass(kind, SourceError):
        error = kind("https://host/a.tif", "is 100 % gone: {}")
    else:
        error = kind("what was asked")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert isinstance(again, CubeError)
    if isinstance(error, SourceError):
        assert type(again) is kind
        assert (again.href, again.reason) == (error.href, error.reason)


def test_an_error_about_a_source_names_it_first():
    assert str(SourceError("/data/a.tif", "is no TIFF")) == "/data/a.tif: is no TIFF"


def test_a_missing_extra_holds_the_line_that_installs_it():
    error = MissingExtraError("opening a cube with chunks", "dask")
    assert str(error).endswith("pip install 'cogcube[dask]'")
    assert error.extra == "dask"


def test_a_bad_argument_is_a_value_error_too():
    assert issubclass(SelectionError, ValueError)
