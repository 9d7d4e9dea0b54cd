"""What a test needs and does not find: the one place where tests are skipped."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def absent(reason: str, *, is_required: bool = True) -> NoReturn:
    """Skip the test; or fail it where CUBE_REQUIRE=1 and what is missing is among what CI installs.

    Args:
        reason: What is missing, and the command that brings it.
        is_required: Whether CI installs it.
    """
    if is_required and os.environ.get("CUBE_REQUIRE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
