"""TIFFs by what they say of their pixels: where these lie, which are valid, what they mean."""

from __future__ import annotations

import itertools
import math

import numpy as np
from affine import Affine
from rasterio.control import GroundControlPoint

from tests.contract.stored_files import (
    ALPHA,
    GRAY,
    GRID,
    HEIGHT,
    RGB,
    TILED,
    UNDEFINED,
    WIDTH,
    File,
    colours,
    holes,
    ramp,
)


def places():
    def point(dataset):
        dataset.update_tags(AREA_OR_POINT="Point")

    a = GRID["transform"]
    for name, transform in {
        "south-up": Affine(10, 0, 500000, 0, 10, 4000000),
        "mirrored": Affine(-10, 0, 500000, 0, -10, 5000000),
        "turned": Affine(-10, 0, 500000, 0, 10, 5000000),
        "rotated": a * Affine.rotation(30),
        "sheared": a * Affine.shear(20, 5),
        "transposed": Affine(0, 10, 500000, 10, 0, 5000000),
        "slightly-rotated": a * Affine.rotation(1e-6),
        "oblong": Affine(10, 0, 500000, 0, -3.5, 5000000),
        "tiny": Affine(1e-9, 0, 12.5, 0, -1e-9, 45.25),
        "huge": Affine(1e6, 0, -2e7, 0, -1e6, 2e7),
        "unit": Affine(1, 0, 0, 0, -1, 0),
        "odd": Affine(1 / 3, 0, math.pi, 0, -1 / 7, math.e),
    }.items():
        yield f"grid-{name}", File({"transform": transform}, overviews=(2,))
        yield f"grid-{name}-point", File({"transform": transform}, edit=point)
    yield "grid-identity", File({"transform": Affine.identity()})
    yield "grid-flat", File({"transform": Affine(0, 1, 5, 0, 1, 5)}, refusal="degenerate grid|no georeferencing")
    yield "grid-none", File({"transform": None}, refusal="no georeferencing")
    gcps = [GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100) for r, c in ((0, 0), (0, 99), (80, 0), (80, 99))]
    yield "grid-gcps", File({"transform": None, "gcps": gcps}, refusal="ground control points instead of a transform")
    yield "no-crs", File({"crs": None})
    yield "world-file", File({"profile": "BASELINE", "tfw": "yes"})
    yield "world-file-no-crs", File({"profile": "BASELINE", "tfw": "yes", "crs": None})
    yield "world-file-besides", File({"tfw": "yes"})
    yield "baseline", File({"profile": "BASELINE"})
    yield "geotiff-profile", File({"profile": "GeoTIFF", "nodata": 7}, most=20)
    yield (
        "beside",
        File(
            {},
            after=lambda path: path.with_name(path.name + ".aux.xml").write_text(
                "<PAMDataset><SRS>EPSG:3035</SRS><GeoTransform>1, 2, 0, 3, 0, -4</GeoTransform>"
                '<PAMRasterBand band="1"><NoDataValue>9</NoDataValue><Scale>0.1</Scale><Offset>3</Offset>'
                "<UnitType>K</UnitType><Description>heat</Description></PAMRasterBand></PAMDataset>"
            ),
        ),
    )
    yield (
        "statistics-beside",
        File(
            {},
            after=lambda path: path.with_name(path.name + ".aux.xml").write_text(
                '<PAMDataset><PAMRasterBand band="1"><Metadata><MDI key="STATISTICS_MAXIMUM">7</MDI></Metadata>'
                "</PAMRasterBand></PAMDataset>"
            ),
        ),
    )


def masks():
    for count, dtype, interleave in itertools.product(
        (1, 2, 3, 4, 5), ("uint8", "uint16", "float32"), ("pixel", "band")
    ):
        if count > 1:
            named = (GRAY, ALPHA) if count == 2 else (*RGB, *(UNDEFINED,) * (count - 4), ALPHA)[-count:]
            pixels = ramp(count, dtype)
            pixels[-1] *= holes().astype(dtype)
            yield f"alpha-{count}-{dtype}-{interleave}", File(
                TILED | {"interleave": interleave, "compress": "deflate"}, pixels, dtype=dtype, edit=colours(*named),
                overviews=(2,),
            )  # fmt: skip
        yield (
            f"mask-{count}-{dtype}-{interleave}",
            File(TILED | {"interleave": interleave}, count=count, dtype=dtype, mask=holes(), overviews=(2, 4)),
        )
    for alpha in ("yes", "no", "premultiplied", "non-premultiplied", "unspecified"):
        pixels = ramp(4)
        pixels[3] *= holes()
        yield f"alpha-{alpha}", File({"alpha": alpha, "photometric": "rgb"}, pixels)
        yield f"alpha-{alpha}-2", File({"alpha": alpha}, pixels[2:])
        yield f"alpha-{alpha}-nodata", File({"alpha": alpha, "photometric": "rgb", "nodata": 5}, pixels)
        yield (
            f"alpha-{alpha}-mask",
            File({"alpha": alpha, "photometric": "rgb"}, pixels, mask=holes().T[:1].T | holes()),
        )
    yield "alpha-first", File(TILED, count=4, edit=colours(ALPHA, *RGB))
    yield "alpha-first-2", File(TILED, count=2, edit=colours(ALPHA, GRAY))
    beside = {"GDAL_TIFF_INTERNAL_MASK": False}
    yield "mask-beside", File(TILED, mask=holes(), settings=beside)
    yield "mask-beside-overviews", File(TILED, count=3, mask=holes(), settings=beside, overviews=(2, 4))
    yield "mask-beside-nodata", File(TILED | {"nodata": 4}, mask=holes(), settings=beside)
    yield "mask-nodata", File(TILED | {"nodata": 4}, mask=holes(), overviews=(2,))
    yield "mask-nodata-float", File(TILED | {"nodata": -9999.0}, dtype="float32", mask=holes())
    yield "mask-strips", File({"blockysize": 7}, mask=holes())
    yield "mask-deflate", File(TILED | {"compress": "deflate"}, dtype="int16", mask=holes())
    yield "mask-all", File(TILED, mask=np.zeros((HEIGHT, WIDTH), bool))
    yield "mask-none", File(TILED, mask=np.ones((HEIGHT, WIDTH), bool))
    for dtype in ("int8", "uint32", "int32", "uint64", "int64", "float64", "complex64", "float16"):
        yield (
            f"mask-{dtype}",
            File(
                TILED,
                dtype=dtype,
                mask=holes(),
                refusal="every number of" if "64" in dtype and "int" in dtype else None,
            ),
        )


def meanings():
    def several(dataset):
        dataset.scales, dataset.offsets = (0.5, 2.0, 1.0), (-10.0, 0.0, 0.0)
        dataset.units, dataset.descriptions = ("m", "", "K"), ("height", None, "heat of ground")

    yield "scales", File(TILED, count=3, dtype="int16", edit=several)
    yield "scales-nodata", File(TILED | {"nodata": 5}, count=3, dtype="uint16", edit=several)
    yield "scales-float", File(TILED | {"nodata": 5}, count=3, dtype="float32", edit=several)
    yield "scales-int32", File(TILED | {"nodata": 5}, count=3, dtype="int32", edit=several)
    yield "scales-mask", File(TILED, count=3, dtype="uint8", edit=several, mask=holes())
    yield "scales-bands", File({"interleave": "band"}, count=3, dtype="uint8", edit=several)
    yield "scales-tiny", File({}, dtype="int16", edit=lambda d: setattr(d, "scales", (1e-12,)))
    for names in (("x", "y"), ("time", "spatial_ref"), ("a", "a"), ("band", "band_1"), ("", "b"), ("1", "2"),
                  ("B 1 (nm)", "ü/µ"), ("xc", "yc"), ("a" * 300, "b\nc")):  # fmt: skip
        yield (
            f"names-{names[0][:9]}-{names[1][:9]}".replace("/", "").replace("\n", ""),
            File({}, count=2, edit=lambda dataset, names=names: setattr(dataset, "descriptions", names)),
        )
    for dtype, nodata in (("uint8", 0), ("uint8", 255), ("int8", -128), ("uint16", 65535), ("int16", -32768),
                          ("int32", -(2**31)), ("uint32", 2**32 - 1), ("int64", -9999), ("uint64", 0),
                          ("float16", 5), ("float32", math.nan), ("float32", 5), ("float32", math.inf),
                          ("float32", -math.inf), ("float32", -3.4028234663852886e38), ("float32", 1e-40),
                          ("float64", -1.7976931348623157e308), ("float64", math.nan), ("float64", -9999.1),
                          ("complex64", 5), ("complex128", math.nan)):  # fmt: skip
        pixels = ramp(2).astype(dtype)
        pixels[:, ::3, ::2] = nodata
        yield f"nodata-{dtype}-{nodata}", File(TILED | {"nodata": nodata}, pixels, dtype=dtype, overviews=(2,))
    for text in ("-9999", "256", "nan", "inf", "-inf", "-1", "1e3", "", "7 8", " 7", "7.0", "1e400", "-0", "+7"):
        for dtype in ("uint8", "int16", "float32"):
            yield f"nodata-text-{text}-{dtype}", File({"nodata": 11}, dtype=dtype, most=20, after=nodata_text(text))
    yield "nodata-values", File({}, count=3, most=3, edit=lambda dataset: dataset.update_tags(NODATA_VALUES="0 0 1"))
    yield (
        "nodata-values-nodata",
        File({"nodata": 2}, count=3, most=3, edit=lambda dataset: dataset.update_tags(NODATA_VALUES="0 0 1")),
    )
    for nodata in (-9999, -3.4028234663852886e38, 1e-3, 1e30):
        for dtype in ("float32", "float64"):
            near = np.array(nodata, dtype) * (1 - np.array([[[0, 1e-9, 1e-7, 3e-7, 4e-7, 5e-7, 1e-6, 1e-3, 0.5, 2]]]))
            yield f"nodata-near-{nodata}-{dtype}", File({"nodata": nodata}, near.astype(dtype), dtype=dtype)
    near = np.array([[[5, 5 + 1j, 5j, 4]]], "complex64")
    yield "nodata-complex", File({"nodata": 5}, near, dtype="complex64")
    yield "nodata-complex-nan", File({"nodata": math.nan}, near * math.nan, dtype="complex64")


def nodata_text(text):
    """Return a function that writes a text over the nodata value "11" of a file, which has room for 2 characters.

    Longer texts go to the end of the file.
    """

    def edit(path):
        data = bytearray(path.read_bytes())
        entry = data.find(b"\x81\xa4\x02\x00")  # tag 42113, ASCII, little endian
        value = text.encode() + b"\0"
        data[entry + 4 : entry + 8] = len(value).to_bytes(4, "little")
        if len(value) <= 4:
            data[entry + 8 : entry + 12] = value.ljust(4, b"\0")
        else:
            data[entry + 8 : entry + 12] = len(data).to_bytes(4, "little")
            data += value
        path.write_bytes(data)

    return edit


def references():
    for code in (4326, 4269, 4267, 4258, 3857, 32733, 32601, 3035, 2154, 27700, 28992, 31370, 21781, 2056, 3031, 3413,
                 3995, 3577, 5070, 6933, 6350, 3832, 26915, 26715, 2193, 7844, 7855, 4979, 2263, 2227, 3067,
                 5514, 22275, 2039, 31467, 23031, 4978, 3408, 3978, 102001, 5880, 3174, 2180, 4087, 32662, 3395,
                 6622, 8857, 54009, 3993, 2046, 3120, 3003, 9518, 5498, 7415, 6349):  # fmt: skip
        for version in ("1.0", "1.1"):
            yield f"epsg-{code}-{version}", File({"crs": f"EPSG:{code}", "geotiff_version": version})
    for name, text in {
        "sinusoidal": "+proj=sinu +lon_0=0 +R=6371007.181 +units=m",
        "albers": "+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=23 +lon_0=-96 +datum=WGS84 +units=m",
        "lcc": "+proj=lcc +lat_1=33 +lat_2=45 +lat_0=39 +lon_0=-97 +R=6370000 +units=m",
        "lcc1": "+proj=lcc +lat_1=46.5 +lat_0=46.5 +lon_0=0 +k_0=0.99987742 +a=6378249.2 +b=6356515 +units=m",
        "laea": "+proj=laea +lat_0=10 +lon_0=20 +ellps=GRS80 +units=m",
        "geos": "+proj=geos +h=35785831 +lon_0=0 +sweep=y +ellps=GRS80 +units=m",
        "stere": "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +R=6371000 +units=m",
        "rotated": "+proj=ob_tran +o_proj=longlat +lon_0=-162 +o_lon_p=0 +o_lat_p=39.25 +ellps=bessel",
        "mars": "+proj=eqc +lat_ts=0 +lat_0=0 +lon_0=180 +R=3396190 +units=m",
        "moon": "+proj=longlat +R=1737400",
        "omerc": "+proj=omerc +lat_0=4 +lonc=115 +alpha=53.3 +k=0.99984 +x_0=0 +y_0=0 +gamma=53.1 +ellps=evrst30",
        "feet": "+proj=tmerc +lat_0=40 +lon_0=-75 +k=0.9999 +x_0=500000 +y_0=0 +datum=NAD83 +units=us-ft",
        "paris": "+proj=longlat +ellps=clrk80ign +pm=paris",
        "towgs84": "+proj=tmerc +lon_0=9 +x_0=3500000 +ellps=bessel +towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7",
        "merc": "+proj=merc +lon_0=100 +k=0.997 +ellps=WGS84",
        "merc2": "+proj=merc +lat_ts=41 +lon_0=100 +ellps=WGS84",
        "robin": "+proj=robin +datum=WGS84", "moll": "+proj=moll +datum=WGS84",
        "eqearth": "+proj=eqearth +datum=WGS84", "cea": "+proj=cea +lat_ts=30 +datum=WGS84",
        "km": "+proj=utm +zone=33 +datum=WGS84 +units=km", "gnom": "+proj=gnom +lat_0=90 +lon_0=-50 +R=6371200",
        "aeqd": "+proj=aeqd +lat_0=50 +lon_0=8 +datum=WGS84", "igh": "+proj=igh +datum=WGS84",
    }.items():  # fmt: skip
        for version, flavour in (("1.0", "standard"), ("1.1", "standard"), ("1.1", "esri_pe")):
            yield (
                f"proj-{name}-{version}-{flavour}",
                File({"crs": text, "geotiff_version": version, "geotiff_keys_flavor": flavour}),
            )
