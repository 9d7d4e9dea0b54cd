from __future__ import annotations

import pydantic
import pytest

from cube.errors import SettingsError
from cube.settings import get_settings


@pytest.fixture(autouse=True)
def _fresh():
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


def test_every_field_is_a_variable(monkeypatch, tmp_path):
    wanted = {"requests_in_flight": 7, "gap_bytes": 0, "timeout_s": 1.5, "attempts": 2, "cache_dir": tmp_path / "c"}
    for name, value in wanted.items():
        monkeypatch.setenv(f"CUBE_{name.upper()}", str(value))
    found = get_settings()
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_settings_are_read_once(monkeypatch):
    first = get_settings()
    monkeypatch.setenv("CUBE_ATTEMPTS", "3" if first.attempts != 3 else "4")
    assert get_settings() is first


def test_settings_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        get_settings().attempts = 3


def test_what_cannot_be_used_is_named_with_its_value(monkeypatch):
    monkeypatch.setenv("CUBE_ATTEMPTS", "many")
    monkeypatch.setenv("CUBE_GAP_BYTES", "-1")
    with pytest.raises(SettingsError) as caught:
        get_settings()
    assert "CUBE_ATTEMPTS='many': " in str(caught.value)
    assert "CUBE_GAP_BYTES='-1': " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ATTEMPTS", "0"), ("REQUESTS_IN_FLIGHT", "0"), ("TIMEOUT_S", "0"), ("DECODE_THREADS", "0"), ("GAP_BYTES", "1.5")],
)
def test_absurd_limits_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"CUBE_{name}", value)
    with pytest.raises(SettingsError, match=f"CUBE_{name}='{value}'"):
        get_settings()


def test_variables_of_others_are_ignored(monkeypatch):
    monkeypatch.setenv("CUBE_NO_SUCH_SETTING", "1")
    assert not hasattr(get_settings(), "no_such_setting")
