"""References as Kerchunk writes them, JSON and Parquet: xarray opens them without us."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cube.errors import ReferencesError
from cube.manifest.open import Manifest
from cube.references.plan import References, plan_references
from cube.references.split import plan_split

_ROWS_A_FILE = 100_000


def to_kerchunk(manifest: Manifest, path: str | Path, *, level: int = 0, split: bool = False, raw: bool = False) -> int:
    """Write a cube's references: `xarray.open_dataset(path, engine="kerchunk")` opens them without cogcube.

    Args:
        manifest: The cube.
        path: A name that ends with .json, or with .parq or .parquet for a folder that opens in parts, for archives of
            more than some hundred thousand tiles.
        level: 0 is full resolution.
        split: Whether to write groups "0", "1" and so on, each of sources that one array a band can hold: for cubes
            that one group cannot describe. `xarray.open_dataset(path, engine="kerchunk", group="0")` opens one.
        raw: Whether to give bands as they are stored whose files differ in scale or offset alone: with
            "BAND_scale" and "BAND_offset" as coordinates, and an attribute that says so.

    Returns:
        How many tiles it refers to.

    Raises:
        ReferencesError: Static references cannot describe the cube (names a band, a file and the reason), or `path`
            cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".json", ".parq", ".parquet"):
        raise ReferencesError(f"{path}: give a name that ends with .json or .parq")
    # In Parquet an absent chunk is a null, which readers with pandas 3 take for a URL.
    dense = path.suffix != ".json"
    if split and raw:
        raise ReferencesError("give split or raw: each group of the former has the scale and offset of its files")
    if split:
        references = plan_split(manifest, level=level, dense=dense)
    else:
        references = plan_references(manifest, level=level, dense=dense, raw=raw)
    try:
        if path.suffix == ".json":
            _write_json(path, references)
        else:
            _write_parquet(path, references)
    except OSError as error:
        raise ReferencesError(f"{path} cannot be written: {error}") from error
    return sum(isinstance(value, tuple) for value in references.values())


def _write_json(path: Path, references: References) -> None:
    if path.is_dir():
        raise ReferencesError(f"{path} is a folder; choose another name")
    rendered = {key: value if isinstance(value, tuple) else _text(key, value) for key, value in references.items()}
    text = json.dumps({"version": 1, "refs": rendered}, separators=(",", ":"))
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _holds_references(folder: Path) -> bool:
    metadata = folder / ".zmetadata"
    return metadata.is_file() and "record_size" in json.loads(metadata.read_bytes())


def _text(key: str, value: bytes) -> str:
    is_metadata = key.rpartition("/")[2].startswith(".z")
    return value.decode() if is_metadata else "base64:" + base64.b64encode(value).decode()


def _write_parquet(path: Path, references: References) -> None:
    """Write what fsspec's LazyReferenceMapper reads: a folder a variable, its chunks in C order, 100,000 a file."""
    if path.exists() and not _holds_references(path):
        raise ReferencesError(f"{path} exists and holds no references; choose another name")
    metadata = json.loads(references[".zmetadata"])  # type: ignore[arg-type]  # metadata is bytes
    with _replacing(path) as temporary:
        temporary.mkdir()
        (temporary / ".zmetadata").write_text(json.dumps({**metadata, "record_size": _ROWS_A_FILE}), encoding="utf-8")
        for name, document in metadata["metadata"].items():
            if not name.endswith("/.zarray"):
                continue
            variable = name.removesuffix("/.zarray")
            counts = [-(-n // chunk) for n, chunk in zip(document["shape"], document["chunks"], strict=True)]
            keys = (f"{variable}/{'.'.join(map(str, p)) or '0'}" for p in itertools.product(*map(range, counts)))
            (temporary / variable).mkdir(parents=True)
            for number, batch in enumerate(itertools.batched(keys, _ROWS_A_FILE)):
                table = _reference_table([references[key] for key in batch])
                pq.write_table(table, temporary / variable / f"refs.{number}.parq", compression="zstd")


def _reference_table(values: list[bytes | tuple[str, int, int]]) -> pa.Table:
    rows = [("", 0, 0, value) if isinstance(value, bytes) else (*value, None) for value in values]
    path, offset, size, raw = zip(*rows, strict=True)
    return pa.table(
        {
            "path": pa.array(path, pa.string()),
            "offset": pa.array(offset, pa.int64()),
            "size": pa.array(size, pa.int64()),
            "raw": pa.array(raw, pa.binary()),
        }
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what is there takes the place of `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield folder / "new"
        if path.is_dir():
            path.replace(folder / "old")
        (folder / "new").replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
