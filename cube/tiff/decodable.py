"""Which images our decoders read exactly as GDAL does, and why GDAL reads the others."""

from __future__ import annotations

from collections.abc import Sequence

from cube.tiff.ifd import MAX_TILE_BYTES, Image, Tag
from cube.tiff.tiles import lacks_lengths

_PLAIN, _JPEG, _LERC, _WEBP = 1, 7, 34887, 50001
_FAST_CODECS = {_PLAIN, 5, _JPEG, 8, 32773, 32946, _LERC, 50000, _WEBP}  # with LZW, deflate (two), PackBits, zstd
_CODECS = {2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 6: "old JPEG", 7: "JPEG", 32773: "PackBits",
           34661: "JBIG", 34676: "SGI Log", 34677: "SGI Log 24", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
           50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}  # fmt: skip
_FAST_PHOTOMETRICS = {0, 1, 2, 3}  # grey (either way up), RGB, palette: GDAL gives the stored values of these
_YCBCR = 6
_PHOTOMETRICS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab",
                 9: "ICCLab", 10: "ITULab", 32803: "CFA", 32844: "LogL", 32845: "LogLuv",
                 34892: "linear raw"}  # fmt: skip
_FAST_TYPES = {"u8", "u16", "u32", "u64", "i8", "i16", "i32", "i64", "f16", "f32", "f64", "c64", "c128"}
_MASK_TYPES = {"u1", "u8"}
_CODEC_TYPES = {_JPEG: {"u8"}, _WEBP: {"u8"}, _LERC: {"u8", "i8", "u16", "i16", "u32", "i32", "f32", "f64"}}
_CODEC_COLOURS = {
    _JPEG: {*((grey, 1) for grey in (0, 1, 2, 3)), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (_YCBCR, 3)},
    _WEBP: {(1, 3), (1, 4), (2, 3), (2, 4)},
}
"""(photometric, samples in a tile) that come out of the codec bit for bit as GDAL gives them."""


def slow_reasons(levels: Sequence[Image], masks: Sequence[Image | None]) -> list[str]:
    """Return why GDAL has to read the pixels of a file; empty where our decoders do.

    Args:
        levels: Its full resolution and overviews, their types loaded.
        masks: The mask image of each.
    """
    main = levels[0]
    found: list[str] = []
    for number, image in enumerate(levels):
        reasons = _reasons(image, is_mask=False)
        if (image.sample_type, image.interleave) != (main.sample_type, main.interleave):
            reasons.append(f"samples of another type ({image.sample_type}, {image.interleave}-interleaved)")
        elif (image.photometric == _YCBCR) != (main.photometric == _YCBCR):
            reasons.append("colours of another kind")
        found += [f"{reason} at level {number}" if number else reason for reason in reasons]
        if found:  # what holds of one image mostly holds of all
            break
    present = [mask for mask in masks if mask is not None]
    if 0 < len(present) < len(masks):
        found.append(f"masks of {len(present)} of {len(masks)} levels")
    for mask in present:
        if reasons := _reasons(mask, is_mask=True):
            return [*found, *(f"{reason} in a mask" for reason in reasons)]
    return found


def _reasons(image: Image, *, is_mask: bool) -> list[str]:
    reasons = _coding_reasons(image, is_mask=is_mask)
    if image.scalars.get(Tag.FILL_ORDER, 1) != 1:
        reasons.append("reversed bit order")
    if is_mask and image.samples > 1:
        reasons.append(f"{image.samples} samples")
    if image.strips and image.codec != _PLAIN:
        if lacks_lengths(image):
            reasons.append("a strip of unknown length")
        if image.tile_bytes > MAX_TILE_BYTES:
            reasons.append(f"strips of {image.tile_bytes} bytes")
    return reasons


def _coding_reasons(image: Image, *, is_mask: bool) -> list[str]:
    codec, predictor, photometric, sample_type = image.codec, image.predictor, image.photometric, image.sample_type
    in_tile = image.samples // image.planes
    name = _CODECS.get(codec, f"unknown ({codec})")
    colours = _PHOTOMETRICS.get(photometric, f"unknown ({photometric})")
    is_ycbcr = photometric == _YCBCR and codec == _JPEG
    reasons = []
    if codec not in _FAST_CODECS or (is_mask and codec in _CODEC_TYPES):
        reasons.append(f"{name} compression")
    elif (photometric, in_tile) not in _CODEC_COLOURS.get(codec, {(photometric, in_tile)}):
        reasons.append(f"{name} compression of {in_tile} samples of {colours} colours")
    elif predictor not in (1, 2, 3) or (predictor == 2 and sample_type in ("u1", "c128")):  # which libtiff refuses, too
        reasons.append(f"predictor {predictor} on samples of type {sample_type}")
    elif predictor == 3 and sample_type[0] != "f":
        reasons.append(f"floating-point predictor on samples of type {sample_type}")
    if not (is_mask or is_ycbcr or photometric in _FAST_PHOTOMETRICS):  # GDAL does not look at a mask's colours
        reasons.append(f"{colours} colours")
    if sample_type not in (_MASK_TYPES if is_mask else _FAST_TYPES):
        reasons.append(f"samples of type {sample_type}")
    elif sample_type not in _CODEC_TYPES.get(codec, _FAST_TYPES | _MASK_TYPES):
        reasons.append(f"{name} compression of samples of type {sample_type}")
    return reasons
