"""What the bands of STAC assets are called: one variable name each, the same in all Items, and aliases."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cube.errors import BuildError, SelectionError

_RESERVED = {"x", "y", "time", "latitude", "longitude", "spatial_ref"}
"""Names of coordinates, which no band may have."""


def variable_name(text: str) -> str:
    """`text` as the name of a variable: letters as they are, digits and `_`, no digit first, no coordinate's name."""
    name = re.sub(r"[\W_]+", "_", re.sub(r"(?i)\.tiff?$", "", text)).strip("_")
    return f"band_{name}" if not name or name[0].isdigit() or name.lower() in _RESERVED else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A band of an asset, as far as its name depends on it; equal in all Items that describe it alike."""

    asset: str
    """The asset key."""
    index: int
    count: int
    """How many bands the asset has."""
    common: str | None
    """STAC's common name."""
    own: str | None
    """The provider's name of the band."""

    def candidates(self) -> list[str]:
        """Names it may have, the best first; the last is the one it may always have."""
        common = [variable_name(self.common)] if self.common else []
        if self.count == 1:
            return [*common, variable_name(self.asset), self.asset]
        own = [variable_name(self.own)] if self.own else []
        number = str(self.index + 1)
        prefixed = [variable_name(f"{self.asset}_{name}") for name in [*common, *own, number]]
        return [*common, *own, *prefixed, f"{self.asset}_{number}"]


def name_bands(layouts: Collection[tuple[Slot, ...]]) -> dict[Slot, str]:
    """One name a slot: its first candidate for which its asset has no rival in any Item.

    One-band assets come before others.

    Args:
        layouts: The slots of each Item; those of Items that are alike may be given once.

    Raises:
        BuildError: two bands of an Item cannot be told apart.
    """
    contested: set[tuple[str, str]] = set()
    for layout in layouts:
        alone = Counter(name for slot in layout if slot.count == 1 for name in set(slot.candidates()))
        every = Counter(name for slot in layout for name in set(slot.candidates()))
        for slot in layout:
            wanted = alone if slot.count == 1 else every
            contested.update((slot.asset, name) for name in slot.candidates() if wanted[name] > 1)
    names: dict[Slot, str] = {}
    for slot in {slot: None for layout in layouts for slot in layout}:
        candidates = slot.candidates()
        names[slot] = next((name for name in candidates if (slot.asset, name) not in contested), candidates[-1])
    for layout in layouts:
        twice = [name for name, count in Counter(names[slot] for slot in layout).items() if count > 1]
        if twice:
            assets = sorted({slot.asset for slot in layout if names[slot] == twice[0]})
            raise BuildError(f"assets {', '.join(assets)} of one Item all make a band {twice[0]!r}; rename one")
    return names


def alias_bands(names: Mapping[Slot, str]) -> dict[Slot, tuple[str, ...]]:
    """Further names that select a slot and no other: its asset key first, then the provider's and the common name."""
    by_key: dict[str, set[str]] = {}
    by_band: dict[str, set[str]] = {}
    for slot, name in names.items():
        if slot.count == 1:
            by_key.setdefault(slot.asset, set()).add(name)
        for said in (slot.own, slot.common):
            if said:
                by_band.setdefault(said, set()).add(name)
    taken = set(names.values())

    def mine(slot: Slot, name: str) -> tuple[str, ...]:
        wanted = dict.fromkeys([*([slot.asset] if slot.count == 1 else []), slot.own, slot.common])
        return tuple(
            said for said in wanted if said and said not in taken and (by_key.get(said) or by_band.get(said)) == {name}
        )

    return {slot: mine(slot, name) for slot, name in names.items()}


def select_bands(bands: Sequence[str], names: Mapping[Slot, str], aliases: Mapping[Slot, tuple[str, ...]]) -> set[Slot]:
    """The slots that names, aliases or the keys of many-band assets select.

    Raises:
        SelectionError: one of `bands` selects nothing; the message holds what there is.
    """
    chosen: set[Slot] = set()
    for band in bands:
        found = {slot for slot, name in names.items() if band == name or band in aliases[slot]}
        found = found or {slot for slot in names if band == slot.asset}
        # Sen2Cor's SCL is "scl" in one catalogue and "SCL" in the next.
        found = found or {slot for slot, name in names.items() if band.casefold() == name.casefold()}
        if not found:
            known = dict.fromkeys(
                f"{name} ({', '.join(aliases[slot])})" if aliases[slot] else name for slot, name in names.items()
            )
            raise SelectionError(f"the Items have no band {band!r}; they have {', '.join(known)}")
        chosen |= found
    return chosen
