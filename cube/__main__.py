"""`python -m cube` is the command `cube`."""

from __future__ import annotations

from cube.cli import main

main()
