"""How a test takes back what a method of this folder did to the process.

A method that changes something global says here how to take it back, as nothing else could know;
a detector gets no help from it. `everything()` runs the latest first.
"""

from __future__ import annotations

from collections.abc import Callable

_waiting: list[Callable[[], object]] = []


def later(take_back: Callable[[], object]) -> None:
    """Keep `take_back` for the end of the test."""
    _waiting.append(take_back)


def set_attribute(place: object, name: str, value: object) -> None:
    """`place.name = value`, to be taken back."""
    before = getattr(place, name)
    later(lambda: setattr(place, name, before))
    setattr(place, name, value)


def add_attribute(place: object, name: str, value: object) -> None:
    """`place.name = value` where `place` has none of its own: it is gone again afterwards."""
    later(lambda: name in vars(place) and delattr(place, name))
    setattr(place, name, value)


def everything() -> None:
    """Take back all there is."""
    while _waiting:
        _waiting.pop()()
