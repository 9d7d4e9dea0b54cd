"""File names to fields: band, time and tile, by a pattern that the user gives or by what varies between the names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import takewhile
from operator import and_
from string import Formatter

import numpy as np

from cube.archive.dates import date_regex, parse_date
from cube.errors import BuildError, SelectionError
from cube.io.stores import href_path

type _Times = list[np.datetime64 | None]
type _Rows = list[list[str]]
"""The tokens of each name."""

_TIFF_SUFFIX = re.compile(r"\.tiff?$", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\W_]+")
_BAND_LIKE = re.compile(
    r"(?i)b\d{1,2}a?|band\d*|coastal|blue|green|red|rededge\d?|nir\d*|swir\d*|lwir\d*|pan|scl|fmask|v[vh]|h[hv]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What a file name says; None is "not said"."""

    band: str | None = None
    """As spelt in the name; None leaves it to the header."""
    time: np.datetime64 | None = None
    """UTC, microseconds."""
    tile: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """Further fields of a pattern."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern of file names such as `{tile}_{band}_{time:%Y%m%d}.tif`.

    A pattern with a slash is compared with the end of the path, one without with the file name. Fields match as few
    characters as they can and never a slash; `{}` matches and forgets, `{name:d}` matches digits alone, `{time:...}`
    takes strptime's directives and may be given in parts (`{time:%Y}/{band}_{time:%m%d}.tif`).

    Raises:
        SelectionError: a brace is open, a format is not one of those above, or the year is missing.
    """

    text: str

    def __post_init__(self) -> None:
        _compile(self.text)

    def match(self, href: str) -> Fields | None:
        """The fields of one path or URL, or None if the pattern does not fit it."""
        path = href_path(href)
        regex, names = _compile(self.text)
        found = regex.fullmatch(path if "/" in self.text else path.rpartition("/")[2])
        if found is None:
            return None
        texts: dict[str, str] = {}
        times: list[tuple[str, str]] = []
        for (name, spec), text in zip(names, found.groups(), strict=True):
            if name == "time":
                times.append((text, spec))
            elif name:
                texts[name] = text
        time = _moment(times)
        if times and time is None:
            return None
        return Fields(band=texts.pop("band", None), time=time, tile=texts.pop("tile", None), extra=texts)


def match_all(hrefs: Sequence[str], pattern: Pattern) -> list[Fields]:
    """The fields of every href, in order.

    Raises:
        BuildError: the pattern fits none of them (the message holds one that would), or not all.
    """
    found = [pattern.match(href) for href in hrefs]
    missed = [href for href, fields in zip(hrefs, found, strict=True) if fields is None]
    if not missed:
        return [fields for fields in found if fields is not None]
    names = ", ".join(href_path(href).rpartition("/")[2] for href in missed[:3])
    if len(missed) == len(hrefs):
        raise BuildError(
            f"the pattern {pattern.text!r} matches none of {len(hrefs)} files, such as {names}; "
            f"{suggest_pattern(hrefs)!r} would"
        )
    raise BuildError(
        f"the pattern {pattern.text!r} does not match {len(missed)} of {len(hrefs)} files, such as {names}; "
        "leave these out, or widen the pattern"
    )


@lru_cache(maxsize=64)
def _compile(text: str) -> tuple[re.Pattern[str], tuple[tuple[str, str], ...]]:
    """A regular expression for the whole text to compare, and the (field, format) of each of its groups."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise SelectionError(f"the pattern {text!r} cannot be read: {error}; write fields as {{band}}") from error
    body = ""
    names: list[tuple[str, str]] = []
    groups: dict[str, int] = {}
    for literal, name, spec, _ in parts:
        body += re.escape(literal)
        if name is None:
            continue
        if name in groups:  # the same text again
            body += rf"(?:\{groups[name]})"
            continue
        body += f"({_field_regex(text, name, spec or '')})"
        names.append((name, spec or ""))
        if name not in {"", "time"}:
            groups[name] = len(names)
    clock = "".join(spec for name, spec in names if name == "time")
    if clock and "%y" not in clock.lower():
        raise SelectionError(f"the pattern {text!r} gives {{time}} no year; write %Y (2024) or %y (24)")
    return re.compile(("(?:.*/)?" if "/" in text else "") + body, re.DOTALL), tuple(names)


def _field_regex(text: str, name: str, spec: str) -> str:
    if name == "time":
        if "%" not in spec:
            raise SelectionError(f"the pattern {text!r} gives {{time}} no format; write {{time:%Y%m%d}} or the like")
        return date_regex(spec, f"the pattern {text!r}")
    if spec not in {"", "d"}:
        raise SelectionError(
            f"the pattern {text!r} gives {{{name}}} the format {spec!r}; it may have d, and {{time}} a date's format"
        )
    return r"\d+" if spec else r"[^/]+?"


def _moment(times: Sequence[tuple[str, str]]) -> np.datetime64 | None:
    """The time that (text, format) pairs make together; None if there are none, or no such day."""
    if not times:
        return None
    text, spec = (" ".join(parts) for parts in zip(*times, strict=True))
    return parse_date(text, spec)


_STRONG = re.compile(
    r"(?<!\d)(?P<Y>19[7-9]\d|20\d\d|2100)"
    r"(?:(?P<sep>[-./]?)(?P<m>0[1-9]|1[0-2])(?P=sep)(?P<d>0[1-9]|[12]\d|3[01])|(?P<j>[0-3]\d\d)(?=T\d))"
    r"(?:(?P<T>T?)(?P<H>[01]\d|2[0-3])(?P<c>[-:]?)(?P<M>[0-5]\d)(?:(?P=c)(?P<S>[0-5]\d))?)?(?!\d)",
    re.IGNORECASE,
)
"""Dates that need no second look: year, month and day, or a day of the year with a clock time behind it."""
_WEAK = (
    (3, "%Y_%m_%d", re.compile(r"(?:19[7-9]\d|20\d\d)_\d\d_\d\d")),
    (1, "%Y%j", re.compile(r"[A-Za-z]*((?:19[7-9]\d|20\d\d)[0-3]\d\d)")),
    (1, "%Y%m", re.compile(r"(?:1[89]|20)\d{4}")),
    (1, "%Y", re.compile(r"19[5-9]\d|20\d\d|2100")),
)
"""(tokens, format, form) of numbers that are dates only if all names of an archive say so."""


def _strong_date(text: str, start: int = 0) -> tuple[np.datetime64, re.Match[str], str] | None:
    """The first date in a text that ends behind `start`, where it stands, and its strptime format."""
    for found in _STRONG.finditer(text):
        if found.end() <= start:
            continue
        sep, clock = found["sep"] or "", found["c"] or ""
        spec = "%Y%j" if found["j"] else f"%Y{sep}%m{sep}%d"
        if found["H"]:
            spec += (found["T"] or "") + f"%H{clock}%M" + (f"{clock}%S" if found["S"] else "")
        time = _moment([(found[0], spec)])
        if time is not None:  # not 31 February
            return time, found, spec
    return None


def _shared_length(paths: Sequence[str]) -> int:
    """How many characters the folders take that all paths share."""
    columns = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    return sum(len(column[0]) + 1 for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _tokens(text: str) -> list[str]:
    return [token for token in _SEPARATORS.split(text) if token]


def _dates(hrefs: Sequence[str], footprints: Sequence[Hashable], samples: Sequence[int]) -> tuple[_Times, _Rows]:
    """The date of each name, and the name's tokens without it; shared folders are no part of the name."""
    paths = [_TIFF_SUFFIX.sub("", href_path(href)) for href in hrefs]
    start = _shared_length(paths)
    strong = [_strong_date(path, start) for path in paths]
    if any(strong):
        times = [found[0] if found else None for found in strong]
        rests = [
            f"{path[start : found[1].start()]} {path[found[1].end() :]}" if found else path[start:]
            for path, found in zip(paths, strong, strict=True)
        ]
        return times, [_tokens(rest) for rest in rests]
    tokens = [_tokens(path[start:]) for path in paths]
    shortest = min(map(len, tokens))
    for width, spec, form in _WEAK:
        for position in (*range(shortest - width + 1), *range(-shortest, 1 - width)):
            weak = [_weak_date(row[position:][:width], spec, form) for row in tokens]
            others = [row[:position] + row[position:][width:] for row in tokens]
            if _are_dates(weak, others, footprints, samples):
                return weak, others
    return [None] * len(hrefs), tokens


def _weak_date(tokens: Sequence[str], spec: str, form: re.Pattern[str]) -> np.datetime64 | None:
    found = form.fullmatch("_".join(tokens))
    return None if found is None else _moment([(found[form.groups], spec)])


def _are_dates(times: _Times, rests: _Rows, footprints: Sequence[Hashable], samples: Sequence[int]) -> bool:
    """Whether numbers that look like dates are: all do, and where a name differs in them alone, nothing else does.

    A row number of a tile (tile_2000_3000) changes the footprint, a date does not.
    """
    if any(time is None for time in times):
        return False
    alike: dict[tuple[str, ...], list[int]] = {}
    for index, rest in enumerate(rests):
        alike.setdefault(tuple(rest), []).append(index)
    varies = any(len({times[index] for index in members}) > 1 for members in alike.values())
    return varies and all(
        len({(footprints[index], samples[index]) for index in members}) == 1 for members in alike.values()
    )


def infer_fields(hrefs: Sequence[str], footprints: Sequence[Hashable], samples: Sequence[int]) -> list[Fields]:
    """What the names of an archive say of its files, told by how they differ.

    The date is the first one in a name (with its folders, below those that all share); numbers such as 2019 or 201904
    count as dates only where all names hold them and files that differ in them alone cover the same ground. The
    tokens in which files of the same ground and date differ are the band; those that go with the ground are the tile.

    Args:
        hrefs: Paths or URLs, all different.
        footprints: What ground each file covers, equal for bands of different resolution (bounds and CRS).
        samples: The number of bands in each file.

    Returns:
        Fields in the order of `hrefs`. A band is None where no other file has the same ground and date in the whole
        archive: the header decides then.
    """
    if not hrefs:
        return []
    times, tokens = _dates(hrefs, footprints, samples)
    groups: dict[tuple[Hashable, np.datetime64 | None], list[int]] = {}
    for index, key in enumerate(zip(footprints, times, strict=True)):
        groups.setdefault(key, []).append(index)
    tell = _by_position if len({len(row) for row in tokens}) == 1 else _by_vocabulary
    bands, tiles = tell(tokens, footprints, list(groups.values()))
    return [
        Fields(band="_".join(band) or None, time=time, tile="_".join(tile) or None)
        for band, time, tile in zip(bands, times, tiles, strict=True)
    ]


def _by_position(tokens: _Rows, footprints: Sequence[Hashable], groups: Sequence[list[int]]) -> tuple[_Rows, _Rows]:
    """(band, tile) tokens of names that all have the same number of tokens."""
    # As keys: a folder that repeats what the name says (B04/x_B04.tif) adds nothing.
    columns = dict.fromkeys(zip(*tokens, strict=True))
    band = [column for column in columns if any(len({column[index] for index in group}) > 1 for group in groups)]
    tile = [
        column
        for column in columns
        if column not in band
        and len(set(column)) > 1
        and len(set(zip(column, footprints, strict=True))) == len(set(footprints))
    ]
    rows = range(len(tokens))
    return [[column[row] for column in band] for row in rows], [[column[row] for column in tile] for row in rows]


def _by_vocabulary(tokens: _Rows, footprints: Sequence[Hashable], groups: Sequence[list[int]]) -> tuple[_Rows, _Rows]:
    """(band, tile) tokens of names of different length (SR_B4, SR_QA_AEROSOL), where positions say nothing."""
    words: set[str] = set()
    for members in groups:
        shared = _shared(tokens[index] for index in members)
        for index in members:
            words.update(Counter(tokens[index]) - shared)
    rows: dict[Hashable, _Rows] = {}
    for footprint, row in zip(footprints, tokens, strict=True):
        rows.setdefault(footprint, []).append(row)
    everywhere = _shared(tokens)
    here = {footprint: _shared(members) - everywhere for footprint, members in rows.items()}
    bands = [[token for token in row if token in words] for row in tokens]
    tiles = [
        [token for token in row if token in here[footprint] and token not in words]
        for footprint, row in zip(footprints, tokens, strict=True)
    ]
    return bands, tiles


def _shared(rows: Iterable[list[str]]) -> Counter[str]:
    return reduce(and_, (Counter(row) for row in rows))


_MARK = "\u16a0"
"""Stands for a date in a name that is being split: a letter, so that the name does not split there."""


def band_words(text: str) -> set[str]:
    """Return the words of a name that are called as bands are ("red", "B04"), in small letters."""
    return {word.lower() for word in _SEPARATORS.split(text) if _BAND_LIKE.fullmatch(word)}


def suggest_pattern(hrefs: Sequence[str]) -> str:
    """A pattern that fits the names of all files (at least one), with `time`, `band` and `tile` guessed."""
    names = [href_path(href).rpartition("/")[2] for href in hrefs]
    suffixes = {name[len(_TIFF_SUFFIX.sub("", name)) :] for name in names}
    suffix = _literal(suffixes.pop()) if len(suffixes) == 1 else ".{}"
    stems = [_TIFF_SUFFIX.sub("", name) for name in names]
    for text in (_suggest_fields(stems), "{band}"):
        if text is not None and all(Pattern(text + suffix).match(name) for name in names):
            return text + suffix
    return "{band}"


def _suggest_fields(stems: Sequence[str]) -> str | None:
    """A pattern of names that split alike, at least up to their date; None for others."""
    marked = [_mark(stem) for stem in stems]
    rows = _even([re.split(r"([\W_]+)", text) for text, _ in marked])
    if rows is None or len({spec for _, spec in marked}) > 1:
        return None
    columns = list(zip(*rows, strict=True))
    spec = marked[0][1]
    pieces = [_literal(column[0]) if len(set(column)) == 1 else None for column in columns]
    for at, column in enumerate(columns):
        weak = next((weak for _, weak, form in _WEAK if all(map(form.fullmatch, column)) and column[0].isdigit()), "")
        if weak and not spec and pieces[at] is None:
            spec, pieces[at] = weak, _MARK
    varying = [at for at, piece in enumerate(pieces) if piece is None]
    if len(set(stems)) == 1:
        varying = [at for at, column in enumerate(columns) if at % 2 == 0 and column[0] and _MARK not in column[0]][-1:]
    if any(at % 2 or any(_MARK in text for text in columns[at]) for at in varying):
        return None
    band = next((at for at in varying if all(map(_BAND_LIKE.fullmatch, columns[at]))), max(varying, default=-1))
    others = iter(["tile", *(f"part{number}" for number in range(2, len(varying)))])
    for at in varying:
        pieces[at] = "{band}" if at == band else f"{{{next(others)}}}"
    return "".join(piece or "" for piece in pieces).replace(_MARK, f"{{time:{spec}}}")


def _even(rows: _Rows) -> _Rows | None:
    """Rows of one length: what follows the date is one piece where rows differ in length, from where they differ."""
    if len({len(row) for row in rows}) == 1:
        return rows
    places = {next((at for at, text in enumerate(row) if _MARK in text), None) for row in rows}
    start = places.pop()
    if start is None or places:
        return None
    start += 2
    shortest = min(map(len, rows))
    while start + 2 < shortest and len({row[start] for row in rows}) == 1:
        start += 2
    even = [[*row[:start], "".join(row[start:])] for row in rows]
    return even if len({len(row) for row in even}) == 1 else None


def _mark(stem: str) -> tuple[str, str]:
    """A stem with a mark in place of its date, and the date's format."""
    found = _strong_date(stem)
    if found is None:
        return stem, ""
    _, where, spec = found
    return stem[: where.start()] + _MARK + stem[where.end() :], spec


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
