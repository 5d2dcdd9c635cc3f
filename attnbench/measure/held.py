"""Modules, classes and single names held still: noted once, compared often, put back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, is_, itemgetter
from types import FunctionType, MappingProxyType, ModuleType
from typing import Any

from attnbench.measure.reached import GONE, OF_FUNCTIONS, Found, put

Named = dict[tuple[Any, str], Any]


class Held:
    """Names by owner, classes that others made, and modules of this package, as they are now, but
    for what the objects hold that are `changing`.

    Whether all is as it was is told in less than a millisecond, by identity: an impostor may say
    that it is equal. What is not as it was is for a slower look.
    """

    def __init__(
        self,
        named: Named,
        classes: Iterable[type] = (),
        modules: Iterable[ModuleType] = (),
        changing: Iterable[object] = (),
    ) -> None:
        self._named: Named = {}
        self._found = Found()
        self._found.leave_out(changing)
        for module in modules:
            self._found.note(module, module.__name__)
        for kind in classes:
            self._found.note_class(kind)
        self.watch(named)

    def watch(self, named: Named) -> None:
        """Compare these names too from now on, and the code of the functions among them."""
        whole = self._found.spaces
        self._named |= {place: own for place, own in named.items() if id(place[0]) not in whole}
        for value in named.values():
            if isinstance(value, FunctionType):
                self._found.note_function(value)
        self._look = _Look(self._named, self._found)

    @property
    def names(self) -> Named:
        """Every name of a module or a class that is compared."""
        own = {
            (space.owner, name): value
            for space in self._found.spaces.values()
            if isinstance(space.owner, ModuleType | type)
            for name, value in space.before.items()
        }
        return {**self._named, **own}

    def is_unchanged(self, *, thoroughly: bool = True) -> bool:
        """Whether everything is what it was; without `thoroughly` a little quicker."""
        return self._look.is_unchanged(thoroughly=thoroughly)

    def put_back(self) -> tuple[list[str], bool]:
        """What is not as it was, each told once, and whether some of it stays that way."""
        told = []
        for owner, name in self._replaced():
            told.append(f"{getattr(owner, '__name__', owner)}.{name}")
            put(owner, name, self._named[owner, name])
        for each in self._found.all():
            told += each.put_back()
        stays = bool(self._replaced()) or any(each.changed for each in self._found.all())
        self._look = _Look(self._named, self._found)  # as the order may be another
        return list(dict.fromkeys(told)), stays

    def _replaced(self) -> list[tuple[Any, str]]:
        named = self._named.items()
        return [(o, name) for (o, name), own in named if vars(o).get(name, GONE) is not own]


class _Look:
    """Everything in a few passes that run no code but Python's own.

    The keys of dictionaries are compared `thoroughly` alone: while one gives way to another that
    has its value, nothing has changed for who looks its own key up but that it is gone.
    """

    def __init__(self, named: Named, found: Found) -> None:
        by_owner: dict[Any, dict[str, Any]] = defaultdict(dict)
        for (owner, name), value in named.items():
            by_owner[owner][name] = value
        self._named = [
            # The first name twice: of a single one no tuple would come.
            (
                vars(owner),
                itemgetter(next(iter(own)), *own),
                (next(iter(own.values())), *own.values()),
            )
            for owner, own in by_owner.items()
        ]
        now = [space.now for space in found.spaces.values()]
        plain = [each for each in now if isinstance(each, dict)]
        proxies = [each for each in now if not isinstance(each, dict)]
        self._values = (
            _Part(plain, dict.values),
            _Part(proxies, MappingProxyType.values),
            _Part([row.now for row in found.rows.values()], iter),
        )
        self._keys = _Part(now, iter)
        owners: dict[str, list[Any]] = defaultdict(list)
        for each in found.fields.values():
            for name, before in zip(each.names, each.before, strict=True):
                if before is not None or name not in OF_FUNCTIONS:
                    owners[name].append(each.owner)
        self._fields = [
            (attrgetter(name), those, [getattr(owner, name) for owner in those])
            for name, those in owners.items()
        ]

    def is_unchanged(self, *, thoroughly: bool) -> bool:
        try:
            return (
                all(all(map(is_, values(now), before)) for now, values, before in self._named)
                and all(part.is_unchanged() for part in self._values)
                and all(all(map(is_, map(of, owners), b)) for of, owners, b in self._fields)
                and (not thoroughly or self._keys.is_unchanged())
            )
        except (AttributeError, KeyError, ValueError):
            return False


class _Part:
    """Containers of one kind, gone through one after the other in one pass."""

    def __init__(self, containers: list[Any], inside: Callable[[Any], Iterable[Any]]) -> None:
        self._containers, self._inside = containers, inside
        self._lengths = [len(each) for each in containers]
        self._before = list(chain.from_iterable(map(inside, containers)))

    def is_unchanged(self) -> bool:
        if list(map(len, self._containers)) != self._lengths:
            return False
        return all(map(is_, chain.from_iterable(map(self._inside, self._containers)), self._before))
