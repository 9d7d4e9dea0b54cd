from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cube.tiff.decode import (
    DEFLATE,
    FLOATING_POINT,
    HORIZONTAL,
    JPEG,
    LERC,
    LZW,
    NONE,
    OLD_DEFLATE,
    PACKBITS,
    WEBP,
    YCBCR,
    ZSTD,
    DecodeError,
    TileLayout,
    decode_into,
    decode_tile,
)

ENCODERS = {
    NONE: bytes,
    LZW: imagecodecs.lzw_encode,
    DEFLATE: zlib.compress,
    OLD_DEFLATE: zlib.compress,
    PACKBITS: imagecodecs.packbits_encode,
    ZSTD: imagecodecs.zstd_encode,
}
RGB = {"colorspace": "RGB", "outcolorspace": "RGB"}
NATIVE, OTHER = ("<", ">") if np.dtype("<u2").isnative else (">", "<")


def layout_of(
    dtype="uint16", *, compression=DEFLATE, predictor=1, samples=1, byteorder="<", height=16, width=32, **more
):
    return TileLayout(
        dtype=np.dtype(dtype),
        byteorder=byteorder,
        samples=samples,
        height=height,
        width=width,
        compression=compression,
        predictor=predictor,
        **more,
    )


def image_layout(compression, samples=3, dtype="uint8", **more):
    return layout_of(dtype, compression=compression, samples=samples, **more)


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
    numbers = np.random.default_rng(seed)
    if layout.dtype.kind == "c":
        return (numbers.normal(size=shape) + 1j * numbers.normal(size=shape)).astype(layout.dtype)
    if layout.dtype.kind == "f":
        return numbers.normal(size=shape).astype(layout.dtype)
    limits = np.iinfo(layout.dtype)
    return numbers.integers(limits.min, limits.max, shape, layout.dtype, endpoint=True)


def photo(samples=3, height=16, width=32):
    """Return smooth pixels, (height, width, samples), or (height, width) of one sample."""
    y, x, sample = np.mgrid[:height, :width, :samples]
    return (128 + 90 * np.sin(x / 5 + sample) * np.cos(y / 7)).astype("uint8").squeeze()


@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "float16", "float32", "complex64", "complex128"])
def test_pixels_come_out_native_as_they_went_in(compression, byteorder, samples, dtype):
    layout = layout_of(dtype, compression=compression, byteorder=byteorder, samples=samples)
    pixels = pixels_of(layout)
    found = decode_tile(encode(pixels, layout), layout)
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, pixels, strict=True)


@pytest.mark.parametrize("compression", [LZW, DEFLATE, OLD_DEFLATE, ZSTD])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "predictor"),
    [(dtype, HORIZONTAL) for dtype in ("int8", "uint16", "int32", "uint64", "float16", "float32", "float64")]
    + [(dtype, FLOATING_POINT) for dtype in ("float16", "float32", "float64")],
)
def test_predictors_are_undone(compression, byteorder, samples, dtype, predictor):
    options = {"compression": compression, "predictor": predictor, "byteorder": byteorder, "samples": samples}
    layout = layout_of(dtype, **options)
    pixels = pixels_of(layout)
    np.testing.assert_array_equal(decode_tile(encode(pixels, layout), layout), pixels, strict=True)


@pytest.mark.parametrize(("top", "bottom"), [(0, 1), (3, 4), (0, 11), (5, 12), (7, 16), (15, 16), (0, 16)])
@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("predictor", [1, HORIZONTAL, FLOATING_POINT])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("samples", [1, 3])
def test_rows_of_a_tile_are_those_of_the_whole(compression, predictor, byteorder, samples, top, bottom):
    if predictor != 1 and compression not in (LZW, DEFLATE, OLD_DEFLATE, ZSTD):
        predictor = 1
    dtype = "float32" if predictor == FLOATING_POINT else "uint16"
    layout = layout_of(dtype, compression=compression, predictor=predictor, byteorder=byteorder, samples=samples)
    pixels = pixels_of(layout)
    found = decode_tile(encode(pixels, layout), layout, top, bottom)
    np.testing.assert_array_equal(found, pixels[top:bottom], strict=True)


def test_a_tile_that_ends_before_the_wanted_rows_is_told():
    layout = layout_of()
    encoded = encode(pixels_of(layout), layout)
    half = encoded[: len(encoded) // 2]
    assert decode_tile(half, layout, 0, 4).shape == (4, 32, 1)
    with pytest.raises(DecodeError, match="where a tile has"):
        decode_tile(half, layout, 0, 11)
    with pytest.raises(DecodeError):
        decode_tile(memoryview(b"not a tile"), layout, 0, 1)


@pytest.mark.parametrize("compression", [NONE, PACKBITS])
def test_codecs_without_a_predictor_ignore_the_tag(compression):
    layout = layout_of("uint8", compression=compression)
    pixels = pixels_of(layout)
    tagged = layout_of("uint8", compression=compression, predictor=HORIZONTAL)
    np.testing.assert_array_equal(decode_tile(encode(pixels, layout), tagged), pixels)
    assert not decode_into(encode(pixels, layout), tagged, np.zeros((16, 32), "uint8"))


@pytest.mark.parametrize(
    ("dtype", "predictor"), [("complex128", HORIZONTAL), ("complex64", FLOATING_POINT), ("int16", 3), ("uint8", 34892)]
)
def test_a_predictor_that_libtiff_refuses_is_an_error(dtype, predictor):
    layout = layout_of(dtype, predictor=predictor)
    with pytest.raises(DecodeError, match=f"predictor {predictor} is not one that this reader undoes on {dtype}"):
        decode_tile(memoryview(zlib.compress(bytes(layout.nbytes))), layout)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64"])
@pytest.mark.parametrize("steps", [(1, 1), (2, 3), (-1, -2)])
def test_a_tile_is_decoded_straight_into_a_strided_place_and_nowhere_else(dtype, steps):
    layout = layout_of(dtype, predictor=HORIZONTAL, byteorder=NATIVE)
    pixels, whole = pixels_of(layout), np.zeros((100, 200), dtype)
    place = whole[20 : 20 + 16 * abs(steps[0]), 30 : 30 + 32 * abs(steps[1])][:: steps[0], :: steps[1]]
    assert decode_into(encode(pixels, layout), layout, place)
    np.testing.assert_array_equal(place, pixels[..., 0])
    place[:] = 0
    assert not whole.any()


@pytest.mark.parametrize(
    ("layout", "out"),
    [
        (layout_of(), np.zeros((16, 32), "uint16")),
        (layout_of(predictor=HORIZONTAL, samples=2), np.zeros((16, 32), "uint16")),
        (layout_of(predictor=HORIZONTAL, byteorder=OTHER), np.zeros((16, 32), "uint16")),
        (layout_of(predictor=HORIZONTAL), np.zeros((16, 31), "uint16")),
        (layout_of(predictor=HORIZONTAL), np.zeros((16, 32), "int16")),
        (layout_of("float32", predictor=HORIZONTAL), np.zeros((16, 32), "float32")),
        (layout_of("uint8", predictor=HORIZONTAL, bits=1), np.zeros((16, 32), "uint8")),
        (image_layout(JPEG, samples=1, predictor=HORIZONTAL), np.zeros((16, 32), "uint8")),
    ],
    ids=["no-predictor", "samples", "byte-order", "shape", "dtype", "floats", "bits", "jpeg"],
)
def test_a_tile_that_cannot_be_decoded_in_place_is_left_alone(layout, out):
    assert not decode_into(memoryview(b"not even a tile"), layout, out)
    assert not out.any()


def test_decoding_in_place_fails_as_decoding_does():
    layout = layout_of(predictor=HORIZONTAL, byteorder=NATIVE)
    with pytest.raises(DecodeError, match="BAD_DATA"):
        decode_into(memoryview(b"not a tile"), layout, np.zeros((16, 32), "uint16"))


@pytest.mark.parametrize("compression", ENCODERS)
@pytest.mark.parametrize("samples", [1, 3])
def test_single_bits_become_numbers(compression, samples):
    layout = layout_of("uint8", compression=compression, samples=samples, width=21, height=5, bits=1)
    pixels = np.random.default_rng(0).integers(0, 2, (5, 21, samples), "uint8")
    packed = np.packbits(pixels.reshape(5, -1), axis=1)
    assert layout.nbytes == packed.size
    found = decode_tile(memoryview(ENCODERS[compression](packed.tobytes())), layout)
    np.testing.assert_array_equal(found, pixels, strict=True)


@pytest.mark.parametrize("compression", [LZW, DEFLATE, PACKBITS, ZSTD, JPEG, LERC, WEBP])
@pytest.mark.parametrize("garbage", [b"", b"\x00", b"not a stream at all", bytes(range(256)) * 4])
def test_bytes_that_are_no_tile_are_an_error(compression, garbage):
    with pytest.raises(DecodeError):
        decode_tile(memoryview(garbage), image_layout(compression))


@pytest.mark.parametrize("compression", ENCODERS)
def test_a_tile_that_is_too_short_is_an_error_with_both_sizes(compression):
    layout = layout_of(compression=compression)
    encoded = memoryview(ENCODERS[compression](bytes(layout.nbytes - 2)))
    with pytest.raises(DecodeError, match="decoded to 1022 bytes where a tile has 1024"):
        decode_tile(encoded, layout)


@pytest.mark.parametrize("compression", [NONE, LZW, DEFLATE, OLD_DEFLATE])
def test_a_last_strip_that_its_writer_padded_is_cut(compression):
    layout = layout_of(compression=compression, height=5)
    pixels = pixels_of(layout)
    padded = np.concatenate([pixels, np.zeros((11, 32, 1), "uint16")])
    np.testing.assert_array_equal(decode_tile(encode(padded, layout), layout), pixels)


def test_a_padded_strip_of_damaged_bytes_is_an_error():
    layout = layout_of(height=5)
    encoded = bytearray(zlib.compress(np.random.default_rng(0).bytes(64 * layout.nbytes)))
    encoded[2] |= 6  # a block of a type that there is not
    with pytest.raises(DecodeError):
        decode_tile(memoryview(encoded), layout)


def test_a_cut_stream_is_an_error_although_the_scratch_memory_holds_a_tile():
    layout = layout_of()
    encoded = encode(pixels_of(layout), layout)
    decode_tile(encoded, layout)
    with pytest.raises(DecodeError):
        decode_tile(encoded[: len(encoded) // 2], layout)


def test_an_unknown_compression_is_an_error():
    with pytest.raises(DecodeError, match="compression 34712 is not one that this reader decodes"):
        decode_tile(memoryview(b"xxxx"), layout_of(compression=34712))


def test_threads_do_not_share_their_scratch_memory():
    layouts = [layout_of(dtype, height=64, width=64) for dtype in ("uint8", "uint16", "float64", "int32")]

    def one(seed):
        layout = layouts[seed % len(layouts)]
        pixels = pixels_of(layout, seed)
        return np.array_equal(decode_tile(encode(pixels, layout), layout), pixels)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))


def jpeg(samples=3, **options):
    return bytes(imagecodecs.jpeg8_encode(photo(samples), **options))


def announced(stream, height, width):
    """Return a JPEG stream that says to be of another size."""
    at = stream.index(b"\xff\xc0") + 5
    return stream[:at] + struct.pack(">HH", height, width) + stream[at + 4 :]


@pytest.mark.parametrize(
    ("stream", "layout", "reason"),
    [
        (announced(jpeg(**RGB), 65000, 65000), image_layout(JPEG), r"of \(65000, 65000, 3\) where .* \(16, 32, 3\)"),
        (announced(jpeg(**RGB), 8, 32), image_layout(JPEG), r"of \(8, 32, 3\) where a tile is \(16, 32, 3\)"),
        (jpeg(1), image_layout(JPEG), r"of \(16, 32, 1\) where a tile is \(16, 32, 3\)"),
        (jpeg()[:-2], image_layout(JPEG, photometric=YCBCR), "without an end"),
        (jpeg()[:300], image_layout(JPEG, photometric=YCBCR), "without an end"),
        (jpeg(outcolorspace="YCBCR", subsampling="420"), image_layout(JPEG, photometric=2), "that are not YCbCr"),
        (jpeg(**RGB), image_layout(JPEG, tables=jpeg()), "tables of the JPEG tiles hold an image"),
        (jpeg(**RGB)[:-2] + b"\xff\xda" * 101 + b"\xff\xd9", image_layout(JPEG), "more than 100 scans"),
        (jpeg(1), image_layout(JPEG, samples=1, dtype="uint16"), "JPEG tiles hold uint8, not uint16"),
    ],
)
def test_a_jpeg_image_that_is_not_the_tile_is_an_error(stream, layout, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_tile(memoryview(stream), layout)


def test_the_header_says_what_colours_a_jpeg_image_has():
    stream = memoryview(jpeg(colorspace="RGB", outcolorspace="YCBCR", subsampling="444", level=100))
    colours = decode_tile(stream, image_layout(JPEG, photometric=YCBCR)).astype(int)
    components = decode_tile(stream, image_layout(JPEG, photometric=2)).astype(int)
    assert np.abs(colours - photo()).max() < 8
    assert np.abs(components[..., 0] - photo() @ [0.299, 0.587, 0.114]).max() < 8


def test_bytes_behind_a_jpeg_image_do_no_harm():
    plain = decode_tile(memoryview(jpeg(**RGB)), image_layout(JPEG)).copy()
    np.testing.assert_array_equal(decode_tile(memoryview(jpeg(**RGB) + bytes(40)), image_layout(JPEG)), plain)


def webp(samples=3, **options):
    return bytes(imagecodecs.webp_encode(photo(samples, **options), lossless=True))


ANIMATED = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<IIHBHB", 10, 2, 16383 & 0xFFFF, 0, 16383, 0)


@pytest.mark.parametrize(
    ("stream", "layout", "reason"),
    [
        (webp(width=64), image_layout(WEBP), r"out.shape=\(16, 32, 3\)"),
        (webp(4), image_layout(WEBP), r"out.shape=\(16, 32, 3\)"),
        (webp()[:100], image_layout(WEBP), "WebP"),
        (ANIMATED, image_layout(WEBP), "an animated WebP image"),
        (webp(), image_layout(WEBP, samples=1), "3 or 4 samples of uint8, not 1 of uint8"),
        (webp(), image_layout(WEBP, dtype="int8"), "3 or 4 samples of uint8, not 3 of int8"),
    ],
)
def test_a_webp_image_that_is_not_the_tile_is_an_error(stream, layout, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_tile(memoryview(stream), layout)


def floats(samples=1, width=32):
    shape = (16, width, samples) if samples > 1 else (16, width)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def lerc(pixels, **options):
    return bytes(imagecodecs.lerc_encode(pixels, **options))


def hidden_version():
    """Return a LERC image of two bands, the second of a version that is not decoded."""
    return lerc(floats(), version=5) + lerc(floats(), version=6)


@pytest.mark.parametrize(
    ("stream", "layout", "reason"),
    [
        (lerc(floats(width=64)), image_layout(LERC, 1, "float32"), "out.shape"),
        (lerc(floats()), image_layout(LERC, 1, "float64"), "out.dtype"),
        (lerc(floats()), image_layout(LERC, 1, "complex64"), "out.dtype"),
        (lerc(floats(2)), image_layout(LERC, 3, "float32"), "of 2 numbers a pixel where a tile has 3 samples"),
        (lerc(photo(1)), image_layout(LERC, 3), "of 1 numbers a pixel where a tile has 3 samples"),
        (lerc(photo(1), masks=photo(1) > 99), image_layout(LERC, 1), "a mask, which no tile of 1 samples of uint8 has"),
        (lerc(floats(), version=6), image_layout(LERC, 1, "float32"), "LERC version 6"),
        (hidden_version(), image_layout(LERC, 2, "float32"), "LERC version 6"),
        (lerc(floats())[:-9], image_layout(LERC, 1, "float32"), "lerc_"),
        (b"CntZImage " + bytes(90), image_layout(LERC, 1, "float32"), "not a LERC image"),
        (zlib.compress(bytes(10**7)), image_layout(LERC, 1, "float32"), "INSUFFICIENT_SPACE"),
        (imagecodecs.zstd_encode(bytes(10**7)), image_layout(LERC, 1, "float32"), "too small"),
    ],
)
def test_a_lerc_image_that_is_not_the_tile_is_an_error(stream, layout, reason):
    with pytest.raises(DecodeError, match=reason):
        decode_tile(memoryview(stream), layout)


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("pack", [bytes, zlib.compress, imagecodecs.zstd_encode])
def test_lerc_of_each_version_and_packing(version, pack):
    stream = memoryview(pack(lerc(floats(), version=version)))
    found = decode_tile(stream, image_layout(LERC, 1, "float32"))
    np.testing.assert_array_equal(found[..., 0], floats(), strict=True)


VALID = [
    (jpeg(outcolorspace="YCBCR", subsampling="420"), image_layout(JPEG, photometric=YCBCR)),
    (jpeg(1), image_layout(JPEG, samples=1)),
    (webp(), image_layout(WEBP)),
    (bytes(imagecodecs.webp_encode(photo(4))), image_layout(WEBP, samples=4)),
    (lerc(floats(), version=2), image_layout(LERC, 1, "float32")),
    (lerc(floats(), masks=floats() > 0), image_layout(LERC, 1, "float32")),
    (lerc(photo(), masks=floats() > 0), image_layout(LERC, 4)),
    (zlib.compress(lerc(photo())), image_layout(LERC)),
    *((bytes(pack(photo().tobytes())), image_layout(code, predictor=2)) for code, pack in ENCODERS.items()),
]


@given(st.data())
def test_damaged_bytes_are_a_tile_or_an_error(data):
    stream, layout = data.draw(st.sampled_from(VALID))
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        damaged = damaged or bytearray(1)
    try:
        pixels = decode_tile(memoryview(damaged), layout)
    except DecodeError:
        return
    assert (pixels.shape, pixels.dtype) == ((layout.height, layout.width, layout.samples), layout.dtype)
