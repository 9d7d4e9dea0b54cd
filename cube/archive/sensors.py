"""What is known of a sensor's products where files and catalogues do not say it, or say it wrongly."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cube.source import BandInfo, Source

type Judgement = Literal["offset", "harmonised", "unclear"]


class Said(NamedTuple):
    """How a file and its catalogue say that a band is stored; the file's word first."""

    dtype: np.dtype[Any]
    nodata: float | None
    scale: float
    offset: float
    by_file: bool
    """True if scale and offset are the file's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How a rule says that a band is stored, against or beyond what its file and catalogue say."""

    rule: str
    """Its name: "sentinel-2", "landsat-c2-l2" or "hls"."""
    scale: float
    offset: float
    nodata: float | None
    text: str
    """What was decided and why, in words."""
    doubtful: bool = False
    """True if the catalogue is no witness: `settle` it by a dark band's pixels."""


class _Kind(NamedTuple):
    """Bands of a product that are stored alike."""

    bands: str
    """How their file names end, or what they are called, as a regular expression in any case."""
    dtype: str
    scale: float
    offset: float
    nodata: int


class _Product(NamedTuple):
    rule: str
    ids: re.Pattern[str]
    """Found in an href or an item's id."""
    collections: re.Pattern[str]
    """Matches a STAC collection's id as a whole."""
    kinds: tuple[_Kind, ...]


_PRODUCTS = (
    _Product(
        "landsat-c2-l2",
        re.compile(r"(?<![^\W_])L[COTE]0\d_L2S[PR]_\d{6}_\d{8}_(?:\d{8}_)?02_(?:T1|T2|RT)"),
        re.compile(r"landsat-c2-?l2(?:-s[rt])?"),
        (
            _Kind("SR_B[1-7]|coastal|blue|green|red|nir08|swir16|swir22", "uint16", 0.0000275, -0.2, 0),
            _Kind("ST_B(?:6|10)|lwir|lwir11", "uint16", 0.00341802, 149.0, 0),
            _Kind("ST_(?:ATRAN|EMIS|EMSD)", "int16", 0.0001, 0.0, -9999),
            _Kind("ST_[DTU]RAD|SR_ATMOS_OPACITY", "int16", 0.001, 0.0, -9999),
            _Kind("ST_(?:CDIST|QA)", "int16", 0.01, 0.0, -9999),
            _Kind("QA_PIXEL", "uint16", 1.0, 0.0, 1),
        ),
    ),
    _Product(
        "hls",
        re.compile(r"(?<![^\W_])HLS\.L30\.T\d\d[A-Z]{3}\.\d{7}T\d{6}\.v\d"),
        re.compile(r"(?:HLSL30|hls2?-l30)(?:[._].*)?"),
        (_Kind("B0[1-79]", "int16", 0.0001, 0.0, -9999), _Kind("B1[01]", "int16", 0.01, 0.0, -9999)),
    ),
    _Product(
        "hls",
        re.compile(r"(?<![^\W_])HLS\.S30\.T\d\d[A-Z]{3}\.\d{7}T\d{6}\.v\d"),
        re.compile(r"(?:HLSS30|hls2?-s30)(?:[._].*)?"),
        (_Kind("B(?:0[1-9]|1[0-2]|8A)", "int16", 0.0001, 0.0, -9999),),
    ),
)
_REFLECTANCE = _Kind(
    "B(?:0[1-9]|1[0-2]|8A)|coastal|blue|green|red|rededge[1-4]?|nir|nir08|nir09|cirrus|swir16|swir22",
    "uint16",
    0.0001,
    -0.1,
    0,
)
"""Of Sentinel-2, levels 1C and 2A, from processing baseline 04.00 on; before that, without an offset."""
_VERSION = re.compile(r"(\d{1,2})\.(\d{1,2})")
_BASELINE_KEYS = ("s2:processing_baseline", "sentinel:processing_baseline")
_MISSION = re.compile(r"(?i)sentinel[- ]?2")
_ID = re.compile(r"(?<![^\W_])S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N(\d\d)(\d\d)_R\d{3}_T")
_ID_KEYS = ("s2:product_uri", "sentinel:product_id")
_FLAGS = "(?:sr_)?(?:qa_pixel|pixel_qa|qa_radsat|radsat_qa|qa_aerosol|cloud_qa)|bqa|fmask|scl"
_FLAG_UNITS = ("bit index", "bit field")


def holds_flags(source: Source, info: BandInfo) -> bool:
    """True if a band holds bits or classes, of which no arithmetic makes sense: QA bands, Fmask, SCL."""
    return info.units in _FLAG_UNITS or _is_called(_FLAGS, source, info)


def decide(source: Source, info: BandInfo, said: Said) -> Decision | None:
    """Return what a rule changes of how a band is stored; None where no rule applies or nothing changes.

    Rules speak where the file and its catalogue are silent. Sentinel-2's also contradicts the catalogue, by the
    processing baseline and never by the date.

    Args:
        source: The file, as its catalogue describes it.
        info: The band, as its catalogue describes it.
        said: What the file and the catalogue say together.
    """
    for product in _PRODUCTS:
        is_named = product.ids.search(source.href) or product.ids.search(source.item)
        if is_named or product.collections.fullmatch(source.collection or ""):
            kind = next((each for each in product.kinds if _is_of(each, source, info, said)), None)
            return None if kind is None else _compose(product.rule, source, info, said, *_fill_in(kind, info, said))
    baseline = _baseline(source)
    if baseline is None or not _is_of(_REFLECTANCE, source, info, said):
        return None
    # The catalogue's offset is weighed below; its scale is not.
    scale, offset, nodata = _fill_in(_REFLECTANCE._replace(offset=info.offset or 0.0), info, said)
    doubt = None
    if not said.by_file and _close(scale, _REFLECTANCE.scale):
        offset, doubt = _sentinel_2_offset(source, info, baseline)
    version = f"processing baseline {baseline[0]:02}.{baseline[1]:02}, "
    return _compose("sentinel-2", source, info, said, scale, offset, nodata, reason=version, doubt=doubt)


def _sentinel_2_offset(source: Source, info: BandInfo, baseline: tuple[int, int]) -> tuple[float, str | None]:
    """Return the offset of reflectances, and what makes it doubtful."""
    if baseline < (4, 0):
        return 0.0, None
    said = info.offset
    if said is not None and _close(said, _REFLECTANCE.offset / _REFLECTANCE.scale):
        said = _REFLECTANCE.offset  # in units of the stored numbers, against STAC
    flags = [value for key, value in source.properties.items() if key.endswith(":boa_offset_applied")]
    flag = next((value for value in flags if isinstance(value, bool)), None)
    by_flag = _REFLECTANCE.offset if flag is False else 0.0
    if _is_earth_search(source):
        return by_flag, "Earth Search's word, which is often wrong"
    if flag is not None:
        is_denied = said is not None and not _close(said, by_flag)
        return by_flag, f"its catalogue contradicts itself and says {said:g}, too" if is_denied else None
    if said is None or _close(said, _REFLECTANCE.offset):
        return _REFLECTANCE.offset, None
    return said, "its catalogue's word, against the baseline"


def is_dark_band(source: Source, info: BandInfo) -> bool:
    """True for the band that `judge_dark_pixels` can judge: red, dark in water and plants, bright in deserts.

    Blue is none: without any offset, haze alone lifts its darkest pixels to about 1000.
    """
    return _is_called("B04|red", source, info)


def judge_dark_pixels(pixels: NDArray[Any], nodata: float | None) -> Judgement:
    """Return whether Sentinel-2's stored numbers have the 1000 added that came with processing baseline 04.00.

    Args:
        pixels: Stored numbers of a small overview, of any shape, of a band for which `is_dark_band`.
        nodata: Marks pixels that do not count, as 0 does.

    Returns:
        "offset" if the darkest pixels lie just above 1000 and hardly any below, "harmonised" if many lie far below,
        "unclear" if there are too few pixels, or none that are dark.
    """
    is_valid = pixels != 0
    if nodata is not None:
        is_valid &= pixels != nodata
    values = pixels[is_valid]
    far_below, below, dark = (np.count_nonzero(values < limit) for limit in (700, 950, 1200))
    if far_below >= max(50, 0.05 * values.size):
        return "harmonised"
    # Half a percent may be below: shadows and edges that were resampled.
    if below <= 0.005 * values.size and dark - below >= max(500, 0.05 * values.size):
        return "offset"
    return "unclear"


def settle(decision: Decision, judgement: Judgement) -> Decision:
    """Return a doubtful decision as its scene's pixels settle it; still doubtful, and what it was, if they do not.

    Args:
        decision: Of `decide`, on a band of Sentinel-2.
        judgement: Of `judge_dark_pixels`, on the dark band of the same scene.
    """
    if judgement == "unclear":
        return replace(decision, text=f"{decision.text}; its pixels do not tell")
    offset = _REFLECTANCE.offset if judgement == "offset" else 0.0
    verdict = "confirm it" if _close(offset, decision.offset) else f"show that it is {offset:g}, which counts"
    return replace(decision, offset=offset, doubtful=False, text=f"{decision.text}; its pixels {verdict}")


def _is_of(kind: _Kind, source: Source, info: BandInfo, said: Said) -> bool:
    return said.dtype == kind.dtype and _is_called(kind.bands, source, info)


def _is_called(bands: str, source: Source, info: BandInfo) -> bool:
    """True if the end of the file's name, the asset key or a name of the band is one of `bands`."""
    at_end, whole = _patterns(bands)
    # By hand: this runs for every band of every source, and urlsplit and pathlib take four times as long.
    stem = _path(source).replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
    key = source.asset.partition(".")[0]  # USGS calls its assets "SR_B4.TIF"
    return at_end.search(stem) is not None or any(whole.fullmatch(name) for name in (key, info.name, *info.aliases))


@functools.cache
def _patterns(bands: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    resolution = r"(?:_\d+m)?"
    return re.compile(rf"(?i)(?<![^\W_])(?:{bands}){resolution}$"), re.compile(rf"(?i)(?:{bands}){resolution}")


def _fill_in(kind: _Kind, info: BandInfo, said: Said) -> tuple[float, float, float]:
    """Return scale, offset and nodata: the rule's, where neither file nor catalogue says something else."""
    pairs = ((info.scale, kind.scale), (info.offset, kind.offset))
    is_silent = not said.by_file and all(own is None or _close(own, rule) for own, rule in pairs)
    scale, offset = (kind.scale, kind.offset) if is_silent else (said.scale, said.offset)
    return scale, offset, kind.nodata if said.nodata is None else said.nodata


def _compose(
    rule: str,
    source: Source,
    info: BandInfo,
    said: Said,
    scale: float,
    offset: float,
    nodata: float,
    *,
    reason: str = "",
    doubt: str | None = None,
) -> Decision | None:
    changes = [f"scale {scale:g}"] * (not _close(scale, said.scale))
    changes += [f"offset {offset:g}"] * (doubt is not None or not _close(offset, said.offset))
    changes += [f"nodata {nodata:g}"] * (said.nodata is None)
    if not changes:
        return None
    why = doubt or f"its {'catalogue' if source.asset else 'file'} gives none"
    if doubt is None and info.offset is not None and not _close(offset, info.offset):
        why = f"its catalogue says {info.offset:g}"
    return Decision(
        rule=rule,
        scale=scale,
        offset=offset,
        nodata=nodata,
        text=f"{rule}: {reason}{', '.join(changes)} ({why})",
        doubtful=doubt is not None,
    )


def _baseline(source: Source) -> tuple[int, int] | None:
    """Return the processing baseline of a Sentinel-2 product; None for others, and for home-made ones (99.99)."""
    found = next((match for match in _versions(source) if match is not None), None)
    baseline = None if found is None else (int(found[1]), int(found[2]))
    return None if baseline is None or baseline >= (90, 0) else baseline


def _versions(source: Source) -> Iterator[re.Match[str] | None]:
    said = source.properties
    for key in _BASELINE_KEYS:
        yield _VERSION.fullmatch(str(said.get(key)))
    mission = (said.get("constellation"), said.get("platform"), source.collection)
    if any(_MISSION.match(str(each)) for each in mission):
        yield _VERSION.fullmatch(str(said.get("processing:version")))
    yield from (_ID.search(text) for text in (source.href, source.item, *(str(said.get(key)) for key in _ID_KEYS)))


def _is_earth_search(source: Source) -> bool:
    """True for the collection whose pixels Earth Search means to harmonise, or copies of it."""
    path = _path(source)
    is_said = source.collection == "sentinel-2-l2a" and any(key.startswith("earthsearch:") for key in source.properties)
    return "sentinel-s2-l2a-cogs/" in path or (is_said and not path.lower().endswith(".jp2"))


def _path(source: Source) -> str:
    return source.href.partition("?")[0]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)
