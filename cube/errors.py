"""Every exception that cube raises on purpose, one tree under `CubeError`.

A message says what was asked, what was found and what to do. An error about one COG names it.
"""

from __future__ import annotations


class CubeError(Exception):
    """Anything that cube refuses or fails to do."""


class SettingsError(CubeError):
    """A setting or an environment variable that cannot be used."""


class MissingExtraError(CubeError):
    """An optional library that is not installed; the message holds the `pip install` line."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs libraries that are not installed: pip install 'cogcube[{extra}]'")
        self.extra = extra

    def __reduce__(self) -> tuple[type[CubeError], tuple[str]]:
        return CubeError, (str(self),)


class SourceError(CubeError):
    """Something is wrong with one source; `href` names it and `reason` says what."""

    hint = ""
    """What to do, where it is the same for every error of a kind; ends the message and is no part of `reason`."""

    def __init__(self, href: str, reason: str) -> None:
        super().__init__(f"{href}: {reason}{self.hint}")
        self.href = href
        self.reason = reason

    def __reduce__(self) -> tuple[type[SourceError], tuple[str, str]]:
        # Exceptions cross process borders (Dask): the default would call __init__ with one argument.
        return type(self), (self.href, self.reason)


class HeaderError(SourceError):
    """Not a TIFF, or one whose header is damaged, truncated or absurd."""


class NotTiffError(HeaderError):
    """A file of another kind, or none at all."""


class UnsupportedSourceError(SourceError):
    """A sound file of a kind that the reader does not cover."""


class ReadError(SourceError):
    """Bytes could not be fetched or decoded."""


class SourceNotFoundError(ReadError):
    """The store says that there is no such object."""


class OfflineError(ReadError):
    """Something on a network that was needed while `CUBE_OFFLINE=1` forbids to fetch it."""


class SourceChangedError(ReadError):
    """A source is no longer what it was when its header was read; what its manifest says of it no longer holds."""

    hint = "; its manifest describes an older version of it: run `cube refresh` on the cube"

    @classmethod
    def because(cls, href: str, change: str) -> SourceChangedError:
        """Return the error that says what changed."""
        return cls(href, f"changed since it was scanned ({change})")


class BuildError(CubeError):
    """Sources that cannot form one cube, with what differs and where."""


class ManifestError(CubeError):
    """A manifest that is absent, damaged, or of a version that this release does not read."""


class SelectionError(CubeError, ValueError):
    """A band, date, window or level that the cube does not have, or an argument of the wrong form."""


class TooLargeError(SelectionError):
    """A read of more bytes or requests than were allowed; the message ends with its plan."""


class CatalogError(CubeError):
    """A catalogue file or an entry of one that cannot be read or written."""


class ReferencesError(CubeError):
    """A cube that static references cannot describe, with the reason."""
