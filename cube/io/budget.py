"""How much may be outstanding at once."""

from __future__ import annotations

import asyncio
from collections import deque


class _Hold:
    """An amount of a budget, taken and given back; made for every request: no generator."""

    __slots__ = ("_amount", "_budget", "_first")

    def __init__(self, budget: Budget, amount: int, first: bool) -> None:
        self._budget, self._amount, self._first = budget, amount, first

    async def __aenter__(self) -> None:
        await self._budget.take(self._amount, first=self._first)

    async def __aexit__(self, *_: object) -> None:
        self._budget.give(self._amount)


class Budget:
    """How much may be outstanding at once, first come, first served; lives on the I/O loop."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def total(self) -> int:
        """How much may be outstanding."""
        return self._total

    @property
    def free(self) -> int:
        """How much more may be taken; negative after `resize` to less than is outstanding."""
        return self._free

    def resize(self, total: int) -> None:
        """Change how much may be outstanding; what is taken stays so until it is given back."""
        self._free += total - self._total
        self._total = total
        self._admit()

    def hold(self, amount: int, *, first: bool = False) -> _Hold:
        """Hold an amount while `async with` lasts; one that is larger than all waits to be alone.

        Args:
            amount: Of the budget.
            first: Whether to go before all who wait: what was begun is ended before more is.
        """
        return _Hold(self, min(amount, self._total), first)

    async def take(self, amount: int, *, first: bool = False) -> None:
        """Wait until an amount is free, and take it."""
        if amount <= self._free and (first or not self._waiting):
            self._free -= amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft((amount, turn))
        else:
            self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)  # granted and cancelled in the same tick
            raise

    def give(self, amount: int) -> None:
        """Return an amount that was taken, and let those who wait for it go on."""
        self._free += amount
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()
