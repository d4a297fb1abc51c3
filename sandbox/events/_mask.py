"""Questions to the mask of an event: `create_event`, `overflow_event` and the rest of Butter's properties."""

from typing import Protocol, Self, overload


class _Masked(Protocol):
    @property
    def mask(self) -> int: ...


class Says:
    """A property: whether the mask of the event has one of these bits.

    Args:
        bits: The bits, as an IntFlag.
        doc: What it means.
    """

    def __init__(self, bits: int, doc: str) -> None:
        # A plain int: arithmetic with an IntFlag costs ten times as much.
        self._bits = int(bits)
        self.__doc__ = doc

    @overload
    def __get__(self, event: None, owner: object = None) -> Self: ...
    @overload
    def __get__(self, event: _Masked, owner: object = None) -> bool: ...
    def __get__(self, event: _Masked | None, owner: object = None) -> "bool | Self":
        return self if event is None else event.mask & self._bits != 0
