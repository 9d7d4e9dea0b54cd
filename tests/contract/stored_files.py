"""TIFFs by the way in which they store pixels: every codec, data type, depth, colour and layout that GDAL writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from rasterio.enums import ColorInterp, Resampling

HEIGHT, WIDTH = 83, 107
GRID = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5000000)}
TILED = {"tiled": True, "blockxsize": 32, "blockysize": 48}
RED, GREEN, BLUE = ColorInterp.red, ColorInterp.green, ColorInterp.blue
GRAY, ALPHA, UNDEFINED = ColorInterp.gray, ColorInterp.alpha, ColorInterp.undefined
RGB = (RED, GREEN, BLUE)


def ramp(count=1, dtype="uint8", height=HEIGHT, width=WIDTH, most=251):
    """Return smooth pixels, so that lossy codecs have a sensible task, distinct by band and quadrant."""
    rows, columns = np.mgrid[:height, :width]
    bands = [(rows * (band + 1) + columns * 2 + band * 40) % most for band in range(count)]
    return np.stack(bands).astype(dtype)


def holes(height=HEIGHT, width=WIDTH):
    """Return where a mask says that pixels are valid: whole tiles, part of tiles and no tiles."""
    rows, columns = np.mgrid[:height, :width]
    return ((rows // 9 + columns // 11) % 3 > 0) & (columns > width // 4)


@dataclass(frozen=True)
class File:
    """How one file is written by GDAL."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """GDAL's creation options, and rasterio's profile."""
    pixels: np.ndarray | None = None
    count: int = 1
    dtype: str = "uint8"
    most: int = 251
    edit: Callable[[Any], None] | None = None
    """Done to the open dataset before pixels are written."""
    mask: np.ndarray | None = None
    overviews: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """GDAL's configuration while it is written."""
    after: Callable[[Path], None] | None = None
    """Done to the file at last."""
    cog: Mapping[str, Any] | None = None
    """Options of GDAL's COG driver, where the file is copied by that."""
    refusal: str | None = None
    """What the error says, as a regular expression; None if the file must be equal."""

    def write(self, path):
        pixels = ramp(self.count, self.dtype, most=self.most) if self.pixels is None else self.pixels
        count, height, width = pixels.shape
        profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": self.dtype} | GRID
        with rasterio.Env(**self.settings):
            with rasterio.open(path, "w", **(profile | self.options)) as dataset:
                if self.edit is not None:
                    self.edit(dataset)
                if not self.options.get("sparse_ok"):
                    dataset.write(pixels)
                else:  # the middle only
                    window = ((height // 3, height // 2), (width // 3, width // 2))
                    dataset.write(pixels[:, slice(*window[0]), slice(*window[1])], window=window)
                if self.mask is not None:
                    dataset.write_mask(self.mask)
            if self.overviews:
                with rasterio.open(path, "r+") as dataset:
                    dataset.build_overviews(self.overviews, Resampling.average)
        if self.after is not None:
            self.after(path)
        if self.cog is not None:
            plain = path.rename(path.with_name("plain.tiff"))
            rasterio.shutil.copy(plain, path, driver="COG", **({"blocksize": 128} | self.cog))


def colours(*interpretation):
    return lambda dataset: setattr(dataset, "colorinterp", interpretation)


def compressions():
    for codec in ("lzw", "deflate", "zstd", "lzma", "packbits", "none"):
        yield codec, File({"compress": codec})
        yield f"{codec}-tiled", File(TILED | {"compress": codec}, count=3)
    for codec, predictor, dtype in itertools.product(
        ("lzw", "deflate", "zstd", "lzma"),
        (2, 3),
        ("uint8", "uint16", "int32", "uint64", "float16", "float32", "float64"),
    ):
        if predictor == 2 or dtype in ("float32", "float64"):
            for interleave, endianness in itertools.product(("pixel", "band"), ("little", "big")):
                name = f"{codec}-{predictor}-{dtype}-{interleave}-{endianness}"
                options = {"compress": codec, "predictor": predictor, "interleave": interleave}
                yield name, File(TILED | options | {"endianness": endianness}, dtype=dtype, count=2)
    for codec in ("lerc", "lerc_deflate", "lerc_zstd"):
        for dtype in ("uint8", "int8", "int16", "uint32", "float32", "float64"):
            for count in (1, 3, 4):
                yield f"{codec}-{dtype}-{count}", File(TILED | {"compress": codec}, dtype=dtype, count=count)
        yield f"{codec}-lossy", File(TILED | {"compress": codec, "max_z_error": 0.5}, dtype="float32")
        yield f"{codec}-strips", File({"compress": codec, "blockysize": 13}, dtype="int16")
        nans = ramp(dtype="float32")
        nans[:, 20:40, 30:80] = math.nan
        yield f"{codec}-nan", File(TILED | {"compress": codec}, nans, dtype="float32")
        yield f"{codec}-nan-nodata", File(TILED | {"compress": codec, "nodata": math.nan}, nans, dtype="float32")
    for kind in ("ccittrle", "ccittfax3", "ccittfax4"):
        yield kind, File({"compress": kind, "nbits": 1}, most=2)
        yield f"{kind}-tiled", File({"compress": kind, "nbits": 1, "tiled": True}, most=2)
    yield "webp", File(TILED | {"compress": "webp"}, count=3)
    yield "webp-rgba", File(TILED | {"compress": "webp", "webp_lossless": True}, count=4, edit=colours(*RGB, ALPHA))
    yield "webp-lossy-rgba", File(TILED | {"compress": "webp"}, count=4, edit=colours(*RGB, ALPHA))
    yield "webp-strips", File({"compress": "webp", "blockysize": 16}, count=3)
    yield "webp-jumbled", File(TILED | {"compress": "webp", "photometric": "minisblack"}, count=3)


def jpegs():
    tiled = {"compress": "jpeg", "tiled": True, "blockxsize": 32, "blockysize": 32}
    for photometric, count in (("minisblack", 1), ("rgb", 3), ("ycbcr", 3), ("minisblack", 3), ("cmyk", 4)):
        for mode in (0, 1, 3):
            yield (
                f"jpeg-{photometric}-{count}-{mode}",
                File(tiled | {"photometric": photometric, "jpegtablesmode": mode}, count=count),
            )
        yield (
            f"jpeg-{photometric}-{count}-strips",
            File({"compress": "jpeg", "photometric": photometric, "blockysize": 16}, count=count),
        )
        if photometric != "cmyk":  # whose overviews GDAL writes so that it cannot read them
            yield (
                f"jpeg-{photometric}-{count}-overviews",
                File(tiled | {"photometric": photometric}, ramp(count, height=300, width=290), overviews=(2, 4, 8)),
            )
    yield "jpeg-ycbcr-oneline", File({"compress": "jpeg", "photometric": "ycbcr", "blockysize": 1000}, count=3)
    yield "jpeg-bands", File(tiled | {"interleave": "band"}, count=3)
    yield "jpeg-bands-rgb", File(tiled | {"interleave": "band", "photometric": "rgb"}, count=3)
    yield "jpeg-2", File(tiled, count=2)
    yield "jpeg-rgba", File(tiled | {"photometric": "rgb"}, count=4, edit=colours(*RGB, ALPHA))
    yield "jpeg-quality-100", File(tiled | {"photometric": "ycbcr", "jpeg_quality": 100}, count=3)
    yield "jpeg-quality-5", File(tiled | {"photometric": "ycbcr", "jpeg_quality": 5}, count=3)
    yield "jpeg-12-bits", File(tiled | {"nbits": 12}, dtype="uint16", most=4000)
    yield "jpeg-ycbcr-mask", File(tiled | {"photometric": "ycbcr"}, count=3, mask=holes(), overviews=(2, 4))
    yield "jpeg-nodata", File(tiled | {"nodata": 0}, count=1)


def dtypes():
    for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
                  "float64", "complex64", "complex128", "complex_int16"):  # fmt: skip
        for endianness in ("little", "big"):
            yield f"{dtype}-{endianness}", File({"endianness": endianness}, ramp(), dtype=dtype)
            yield f"{dtype}-{endianness}-tiled", File(TILED | {"endianness": endianness}, ramp(3), dtype=dtype)
    for dtype, values in {
        "uint64": [0, 1, 2**63, 2**64 - 1],
        "int64": [-(2**63), -1, 2**53 + 1, 2**63 - 1],
        "uint32": [0, 2**32 - 1],
        "int32": [-(2**31), 2**31 - 1],
        "float32": [math.nan, math.inf, -math.inf, -0.0, 1e-45, 3.4e38],
        "float64": [math.nan, math.inf, -math.inf, 5e-324, 1.7e308],
        "float16": [math.nan, math.inf, 6e-8, 65504],
    }.items():
        yield f"{dtype}-extremes", File({}, np.array([[values]], dtype), dtype=dtype)


def bits():
    for nbits in range(1, 32):
        if nbits in (8, 16):
            continue
        dtype = "uint8" if nbits < 8 else "uint16" if nbits < 16 else "uint32"
        most = min(2**nbits, 10**6)
        yield f"nbits-{nbits}", File({"nbits": nbits}, dtype=dtype, most=most)
        yield f"nbits-{nbits}-tiled", File(TILED | {"nbits": nbits, "compress": "deflate"},
                                           dtype=dtype, most=most, count=2)  # fmt: skip
    yield "nbits-1-nodata", File({"nbits": 1, "nodata": 0}, most=2)
    yield "nbits-1-overviews", File({"nbits": 1}, most=2, overviews=(2, 4))
    yield "nbits-16-float", File({"nbits": 16}, dtype="float32")
    yield "nbits-24-float", File({"nbits": 24}, dtype="float32")
    yield "nbits-12-lzw", File({"nbits": 12, "compress": "lzw"}, dtype="uint16", most=4000)


def photometrics():
    def palette(dataset):
        dataset.write_colormap(1, {i: (i, 255 - i, i // 2, 255) for i in range(256)})

    yield "miniswhite", File({"photometric": "miniswhite"})
    yield "miniswhite-tiled-nodata", File(TILED | {"photometric": "miniswhite", "nodata": 7, "compress": "lzw"})
    yield "miniswhite-bits", File({"photometric": "miniswhite", "nbits": 1}, most=2)
    for photometric, count in (("rgb", 3), ("cmyk", 4), ("cielab", 3), ("icclab", 3), ("itulab", 3)):
        for interleave in ("pixel",) if photometric == "cielab" else ("pixel", "band"):  # GDAL reads no other
            yield (
                f"{photometric}-{interleave}",
                File(
                    TILED | {"photometric": photometric, "interleave": interleave, "compress": "deflate"}, count=count
                ),
            )
    yield "palette", File({"photometric": "palette"}, edit=palette)
    yield "palette-nodata", File(TILED | {"photometric": "palette", "nodata": 3}, edit=palette, most=9)
    yield "palette-mask", File(TILED | {"photometric": "palette"}, edit=palette, most=9, mask=holes())
    yield "palette-16", File({"photometric": "palette"}, dtype="uint16", edit=palette)
    yield (
        "palette-4-bits",
        File(
            {"photometric": "palette", "nbits": 4},
            most=16,
            edit=lambda dataset: dataset.write_colormap(1, {i: (i, i * 2, i * 3, 255) for i in range(16)}),
        ),
    )
    yield "palette-overviews", File({"photometric": "palette"}, edit=palette, overviews=(2, 4))
    yield "palette-alpha", File({"photometric": "palette", "alpha": "yes"}, count=2, edit=palette)


def layouts():
    for height in (1, 2, 7, 16, 50, 82, 83, 84, 1000):
        for codec in ("none", "deflate", "lzw"):
            yield f"strips-{height}-{codec}", File({"blockysize": height, "compress": codec}, dtype="uint16")
    for width, height in ((16, 16), (16, 112), (128, 16), (256, 256), (48, 96)):
        for interleave in ("pixel", "band"):
            options = {"tiled": True, "blockxsize": width, "blockysize": height, "interleave": interleave}
            yield f"tiles-{width}-{height}-{interleave}", File(options | {"compress": "zstd"}, count=3, dtype="int16")
    for shape in ((1, 1), (1, 1000), (1000, 1), (2, 3), (513, 511)):
        name = "x".join(map(str, shape))
        yield f"size-{name}", File({}, ramp(2, height=shape[0], width=shape[1]))
        yield f"size-{name}-tiled", File(TILED | {"compress": "lzw"}, ramp(2, height=shape[0], width=shape[1]))
    for nodata, interleave, codec in itertools.product((None, 9), ("pixel", "band"), ("none", "deflate")):
        options = {"sparse_ok": True, "nodata": nodata, "interleave": interleave, "compress": codec}
        yield f"sparse-{nodata}-{interleave}-{codec}", File(TILED | options, count=2, dtype="int16", overviews=(2,))
        yield f"sparse-strips-{nodata}-{interleave}-{codec}", File(options | {"blockysize": 5}, count=2, dtype="int16")
    yield "sparse-mask", File(TILED | {"sparse_ok": True, "compress": "lzw"}, mask=holes())
    yield "sparse-nan", File(TILED | {"sparse_ok": True, "nodata": math.nan}, dtype="float32")
    yield "sparse-alpha", File(TILED | {"sparse_ok": True}, count=4, edit=colours(*RGB, ALPHA))
    for bigtiff, endianness in itertools.product(("yes", "no"), ("little", "big")):
        options = {"bigtiff": bigtiff, "endianness": endianness, "compress": "deflate", "predictor": 2}
        yield f"bigtiff-{bigtiff}-{endianness}", File(TILED | options, dtype="int32", count=2, overviews=(2, 4))
    yield "many-bands", File(TILED | {"compress": "deflate"}, count=70)
    yield "many-bands-apart", File(TILED | {"compress": "deflate", "interleave": "band"}, count=70)
    yield "streamable", File({"streamable_output": "yes"})
    for factors in ((2,), (2, 4, 8), (3, 5), (4, 2)):
        name = "-".join(map(str, factors))
        yield f"overviews-{name}", File(TILED | {"compress": "lzw"}, count=2, overviews=factors, dtype="int16")
        yield f"overviews-{name}-strips", File({}, overviews=factors, dtype="float32")
    yield "overviews-beside", File({}, overviews=(2, 4), settings={"TIFF_USE_OVR": True})
    yield "overviews-nodata", File({"nodata": 9}, overviews=(2, 4), most=20)
    yield (
        "overviews-scale",
        File({"nodata": 9}, overviews=(2, 4), dtype="int16", edit=lambda dataset: setattr(dataset, "scales", (0.5,))),
    )


def cogs():
    height, width = 400, 300
    pixels, is_valid = ramp(4, height=height, width=width), holes(height, width)
    pixels[3] = is_valid * 255
    for codec in ("none", "lzw", "deflate", "zstd", "lerc", "lerc_zstd", "lzma", "jpeg", "webp"):
        yield f"cog-{codec}", File({}, pixels[:3], cog={"compress": codec})
    for interleave, codec in itertools.product(("pixel", "band", "tile"), ("deflate", "jpeg", "lerc")):
        options = {"interleave": interleave, "compress": codec}
        yield f"cog-{interleave}-{codec}", File({}, pixels[:3], cog=options)
        yield f"cog-{interleave}-{codec}-mask", File({}, pixels[:3], mask=is_valid, cog=options)
    for codec in ("jpeg", "webp", "deflate", "lerc"):
        yield f"cog-{codec}-rgba", File({}, pixels, edit=colours(*RGB, ALPHA), cog={"compress": codec})
    yield "cog-web", File({}, pixels, edit=colours(*RGB, ALPHA), cog={"tiling_scheme": "GoogleMapsCompatible"})
    yield "cog-sparse", File({"sparse_ok": True, "nodata": 0}, pixels[:1], cog={"sparse_ok": True, "compress": "lzw"})
    yield "cog-bigtiff", File({}, pixels[:1], cog={"bigtiff": "yes"})
    for dtype in ("int16", "float32"):
        file = File({}, pixels[:2].astype(dtype), dtype=dtype, mask=is_valid, cog={"predictor": "yes"})
        yield f"cog-{dtype}-mask", file
