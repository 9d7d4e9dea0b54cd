"""Runs an object store, by name or by the path of this folder."""

import importlib
import os
import sys
import types

# ObjectStore runs this by its path: a process that needs the standard library only starts in 0.1 s whatever `cube`
# imports, and a `cube.py` in the user's folder cannot take its place. The modules beside this one are then the package
# `objectstore`, without its __init__.py, which the parent's side alone needs.
_package = (__spec__ and __spec__.parent) or "objectstore"
if _package == "objectstore":
    sys.modules[_package] = types.ModuleType(_package)
    sys.modules[_package].__path__ = [os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120

if __name__ == "__main__":
    importlib.import_module(f"{_package}.command").main()
