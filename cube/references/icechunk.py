"""References as virtual chunks of an Icechunk repository: versioned, and checked against a change of the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from cube.errors import MissingExtraError, ReferencesError
from cube.io.stores import is_url
from cube.manifest.facts import SourceFacts
from cube.manifest.open import Manifest
from cube.references.plan import BandReferences, inline, local_name, plan_whole
from cube.zarr_metadata import coordinate_arrays, encode_chunk, render_v3, root_attributes

_BRANCH = "main"
_BYTES_CODECS: Mapping[str, Mapping[str, Any]] = {
    "zlib": {"name": "numcodecs.zlib", "configuration": {"level": 6}},
    "zstd": {"name": "zstd", "configuration": {"level": 9, "checksum": False}},
    "imagecodecs_lzw": {"name": "imagecodecs_lzw"},
}
"""Of version 3 of Zarr, by what version 2 calls them."""


def to_icechunk(manifest: Manifest, path: str | Path, *, level: int = 0) -> int:
    """Write a cube's references to a new commit of a local Icechunk repository, which is made where there is none.

    Who reads it has to allow the places of the files (`authorize_virtual_chunk_access`, or `allow=` of `open_cube`),
    and to register the codecs where files have a predictor or LZW: `imagecodecs.zarr.register_codecs()`, which
    `open_cube` does by itself.

    Args:
        manifest: The cube.
        path: A folder.
        level: 0 is full resolution.

    Returns:
        How many tiles it refers to.

    Raises:
        MissingExtraError: Icechunk is not installed.
        ReferencesError: Static references cannot describe the cube (names a band, a file and the reason), or `path`
            cannot be written.
    """
    try:
        import icechunk
    except ImportError:
        raise MissingExtraError("an Icechunk repository", "icechunk") from None
    whole = plan_whole(manifest, level)
    bands, coordinates = whole.bands, coordinate_arrays(whole.grid, whole.times)
    documents = render_v3(root_attributes(manifest), [array for array, _ in coordinates])
    root = json.loads(documents.pop("zarr.json"))
    root.pop("consolidated_metadata")  # Icechunk holds all metadata together itself
    keys = {"zarr.json": json.dumps(root).encode(), **documents}
    for array, values in coordinates:
        keys["/".join([array.name, "c", *("0",) * values.ndim])] = encode_chunk(values)
    for band in bands:
        keys[f"{band.array.name}/zarr.json"] = _document(band)
        keys |= {_key_v3(key): value for key, value in inline(band).items() if isinstance(value, bytes)}
    try:
        session = _session(
            icechunk, Path(path), {_container(url) for band in bands for url, _, _ in band.present.values()}
        )
        for key, value in keys.items():
            sync(session.store.set(key, default_buffer_prototype().buffer.from_bytes(value)))
        for band in bands:
            _set_chunks(icechunk, session.store, manifest, band)
        session.commit(f"{manifest.name} {manifest.version}")
    except (icechunk.IcechunkError, OSError) as error:
        raise ReferencesError(f"{path} cannot be written: {str(error).strip().splitlines()[0]}") from None
    return sum(len(band.present) for band in bands)


def _session(icechunk: Any, path: Path, containers: set[str]) -> Any:
    """Return an empty session on a repository that knows all places of the files."""
    storage = icechunk.local_filesystem_storage(str(path))
    exists = icechunk.Repository.exists(storage)
    config = (icechunk.Repository.fetch_config(storage) if exists else None) or icechunk.RepositoryConfig.default()
    for prefix in sorted(containers):
        config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, _store(icechunk, prefix)))
    if not exists:
        return icechunk.Repository.create(storage, config).writable_session(_BRANCH)
    repository = icechunk.Repository.open(storage, config)
    repository.save_config()
    session = repository.writable_session(_BRANCH)
    sync(session.store.clear())
    return session


def _container(url: str) -> str:
    """Return the prefix by which a file's place is known: its bucket or host, or its folder on a disk."""
    if not is_url(url):
        return f"{Path(url).parent.as_uri()}/"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"


def _store(icechunk: Any, prefix: str) -> Any:
    parts = urlsplit(prefix)
    match parts.scheme:
        case "file":
            return icechunk.local_filesystem_store(url2pathname(parts.path))
        case "http" | "https":
            return icechunk.http_store()
        case "s3":
            return icechunk.s3_store(region=None)
        case "gs" | "gcs":
            return icechunk.ObjectStoreConfig.Gcs({})
        case "az" | "abfs" | "abfss":
            return icechunk.ObjectStoreConfig.Azure({})
    raise ReferencesError(f"Icechunk reads no files at {prefix}")


def _set_chunks(icechunk: Any, store: Any, manifest: Manifest, band: BandReferences) -> None:
    files = (manifest.facts(source, 0) for source in range(len(manifest)))
    checksums = {local_name(facts.href): _checksum(facts) for facts in files}
    chunks = [
        icechunk.VirtualChunkSpec(
            index=[int(part) for part in key.rpartition("/")[2].split(".")],
            location=url if is_url(url) else Path(url).as_uri(),
            offset=offset,
            length=length,
            **checksums[url],
        )
        for key, (url, offset, length) in band.present.items()
    ]
    refused = store.set_virtual_refs(band.array.name, chunks)
    if refused:
        raise ReferencesError(f"Icechunk refuses the places of {len(refused)} tiles of band {band.band.name!r}")


def _checksum(facts: SourceFacts) -> dict[str, Any]:
    """Return by what a change of a file is seen."""
    if facts.last_modified is not None:
        # To the next whole second, which is what Icechunk compares.
        return {"last_updated_at_checksum": (facts.last_modified + timedelta(seconds=1)).astimezone(UTC)}
    return {} if facts.etag is None else {"etag_checksum": f'"{facts.etag}"'}


def _document(band: BandReferences) -> bytes:
    """Return version 3's metadata of a band, whose chunks are encoded as its files are."""
    array = band.array
    document = json.loads(render_v3({}, [array])[f"{array.name}/zarr.json"])
    dtype = np.dtype(array.dtype)
    endian = {"configuration": {"endian": "big" if dtype.byteorder == ">" else "little"}} if dtype.itemsize > 1 else {}
    codecs: list[Mapping[str, Any]] = [{"name": "bytes"} | endian]
    for each in array.filters:
        if each["id"] == "imagecodecs_floatpred":
            codecs = [{"name": "imagecodecs_floatpred", "configuration": {"axis": -1, "dist": 1}}]
        elif dtype.kind in "iu":
            codecs.insert(0, {"name": "imagecodecs_delta", "configuration": {"axis": -1, "dist": 1}})
        else:
            raise ReferencesError(
                f"version 3 of Zarr has no codec for band {band.band.name!r}: {dtype.name} with differences of "
                "integers; write Kerchunk references, or serve the cube (`cube serve`)"
            )
    if array.compressor is not None:
        codecs.append(_BYTES_CODECS[array.compressor["id"]])
    return json.dumps(document | {"codecs": codecs}).encode()


def _key_v3(key: str) -> str:
    name, _, position = key.rpartition("/")
    return "/".join([name, "c", *position.split(".")])
