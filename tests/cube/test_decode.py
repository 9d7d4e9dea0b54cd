from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest

from cube.decode import DEFLATE, FLOATING_POINT, HORIZONTAL, LZW, NONE, OLD_DEFLATE, ZSTD, DecodeError, place_tile
from cube.plan import Piece, Target, TileLayout

ENCODERS = {
    NONE: bytes,
    LZW: imagecodecs.lzw_encode,
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    ZSTD: imagecodecs.zstd_encode,
}


FIRST = (Target("band", 0, 0),)


def piece_of(layout, *, tile_y=0, tile_x=0, y=0, x=0, height=None, width=None, targets=FIRST):
    return Piece(
        offset=0,
        length=1,
        tile=(0, 0),
        tile_y=tile_y,
        tile_x=tile_x,
        y=y,
        x=x,
        height=layout.height if height is None else height,
        width=layout.width if width is None else width,
        layout=layout,
        targets=targets,
    )


def layout_of(dtype="uint16", *, compression=DEFLATE, predictor=1, samples=1, byteorder="<", height=16, width=32):
    return TileLayout(
        dtype=np.dtype(dtype),
        byteorder=byteorder,
        samples=samples,
        height=height,
        width=width,
        compression=compression,
        predictor=predictor,
    )


def encode(pixels, layout):
    """Return (height, width, samples) pixels as the tile of a file."""
    if layout.predictor == HORIZONTAL:
        word = pixels.view(f"u{pixels.itemsize}")
        pixels = np.diff(word, axis=1, prepend=np.zeros_like(word[:, :1]))
    if layout.predictor == FLOATING_POINT:
        pixels = imagecodecs.floatpred_encode(pixels, axis=-2)
        return memoryview(ENCODERS[layout.compression](pixels.tobytes()))
    stored = pixels.astype(pixels.dtype.newbyteorder(layout.byteorder))
    return memoryview(ENCODERS[layout.compression](stored.tobytes()))


def pixels_of(layout, seed=0):
    shape = (layout.height, layout.width, layout.samples)
    if layout.dtype.kind == "f":
        return np.random.default_rng(seed).normal(size=shape).astype(layout.dtype)
    limits = np.iinfo(layout.dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max, shape, layout.dtype, endpoint=True)


def outputs_of(dtype, rows=40, columns=50, times=2):
    return {"band": np.zeros((times, rows, columns), dtype), "other": np.zeros((times, rows, columns), dtype)}


@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(("dtype", "predictor"), [("uint16", 1), ("int32", 2), ("uint8", 2), ("float32", 3)])
def test_a_part_of_a_tile_goes_to_its_place_and_nowhere_else(compression, byteorder, dtype, predictor):
    layout = layout_of(dtype, compression=compression, predictor=predictor, byteorder=byteorder)
    pixels, outputs = pixels_of(layout), outputs_of(dtype)
    piece = piece_of(layout, tile_y=3, tile_x=5, y=20, x=30, height=7, width=11, targets=(Target("band", 1, 0),))
    place_tile(encode(pixels, layout), piece, outputs)
    expected = np.zeros_like(outputs["band"])
    expected[1, 20:27, 30:41] = pixels[3:10, 5:16, 0]
    np.testing.assert_array_equal(outputs["band"], expected)
    assert not outputs["other"].any()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_whole_tile_with_a_predictor_goes_to_its_place(dtype, byteorder):
    layout = layout_of(dtype, predictor=HORIZONTAL, byteorder=byteorder)
    pixels, outputs = pixels_of(layout), outputs_of(dtype)
    place_tile(encode(pixels, layout), piece_of(layout, y=11, x=13), outputs)
    expected = np.zeros_like(outputs["band"])
    expected[0, 11:27, 13:45] = pixels[..., 0]
    np.testing.assert_array_equal(outputs["band"], expected)


@pytest.mark.parametrize("predictor", [1, HORIZONTAL, FLOATING_POINT])
def test_samples_of_one_tile_go_to_several_bands_and_dates(predictor):
    layout = layout_of("float32", samples=3, predictor=predictor)
    pixels, outputs = pixels_of(layout), outputs_of("float32")
    targets = (Target("band", 0, 2), Target("band", 1, 2), Target("other", 1, 0))
    place_tile(encode(pixels, layout), piece_of(layout, targets=targets), outputs)
    for target in targets:
        np.testing.assert_array_equal(outputs[target.band][target.time, :16, :32], pixels[..., target.sample])
    assert not outputs["other"][0].any()


@pytest.mark.parametrize("compression", [LZW, DEFLATE, ZSTD])
@pytest.mark.parametrize("garbage", [b"", b"\x00", b"not a stream at all", bytes(range(256)) * 4])
def test_bytes_that_are_no_tile_are_an_error(compression, garbage):
    layout = layout_of(compression=compression)
    with pytest.raises(DecodeError):
        place_tile(memoryview(garbage), piece_of(layout), outputs_of("uint16"))


@pytest.mark.parametrize("compression", ENCODERS)
def test_a_tile_that_is_too_short_is_an_error_with_both_sizes(compression):
    layout = layout_of(compression=compression)
    encoded = memoryview(ENCODERS[compression](bytes(layout.nbytes - 2)))
    with pytest.raises(DecodeError, match="decoded to 1022 bytes where a tile has 1024"):
        place_tile(encoded, piece_of(layout), outputs_of("uint16"))


def test_a_cut_stream_is_an_error_and_writes_nothing_of_another_tile():
    layout = layout_of()
    before = encode(pixels_of(layout, 1), layout)
    outputs = outputs_of("uint16")
    place_tile(before, piece_of(layout), outputs)
    outputs["band"][:] = 0
    with pytest.raises(DecodeError):
        place_tile(before[: len(before) // 2], piece_of(layout), outputs)
    assert not outputs["band"].any()


def test_an_unknown_compression_is_an_error():
    with pytest.raises(DecodeError, match="compression 34887 is not one that this reader decodes"):
        place_tile(memoryview(b"xxxx"), piece_of(layout_of(compression=34887)), outputs_of("uint16"))


def test_threads_do_not_share_their_scratch_memory():
    layouts = [layout_of(dtype, height=64, width=64) for dtype in ("uint8", "uint16", "float64", "int32")]

    def one(seed):
        layout = layouts[seed % len(layouts)]
        pixels, outputs = pixels_of(layout, seed), outputs_of(layout.dtype, 64, 64)
        place_tile(encode(pixels, layout), piece_of(layout), outputs)
        return np.array_equal(outputs["band"][0], pixels[..., 0])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))
