"""What can be reached from a module of this package: noted as it is, compared, put back.

Classes and what they define, functions behind wrappers and descriptors, closures, dictionaries,
lists, sets, and the fields of instances; all by identity. What others made is a value under the
name that it has here, and not looked into.
"""

from __future__ import annotations

import builtins
import functools
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from types import (
    CellType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import msgspec
from msgspec.structs import force_setattr  # an arm may replace that of the module

PACKAGE = "attnbench"
Reached = tuple[Any, str]  # a value, and what it is called
# What is added to a module when something is warned of, and to a class that is read from JSON.
PYTHONS_OWN = ("__warningregistry__", "__msgspec_cache__")
OF_FUNCTIONS = ("__code__", "__defaults__", "__kwdefaults__")
OF_INSTANCES = ("__class__", "__dict__")
SAID = {
    "__code__": "the code of {label}",
    "__defaults__": "the defaults of {label}",
    "__kwdefaults__": "the defaults of {label}",
    "cell_contents": "what {label} closes over",
    "__class__": "the class of {label}",
    "__dict__": "what {label} holds",
}
UNCHANGING = (str, int, float, bytes, complex, type(None))
BUILTINS = vars(builtins)  # which every module holds
GONE = object()


def put(owner: Any, name: str, value: object) -> None:
    """Set or delete a name below what a metaclass or a frozen class allows; some stay, as Python
    lets nobody."""
    kinds: tuple[Any, Any] = (type if isinstance(owner, type) else object, type(owner))
    for kind in kinds:
        with suppress(TypeError, AttributeError):
            if value is GONE:
                kind.__delattr__(owner, name)
            else:
                kind.__setattr__(owner, name, value)
            return


@dataclass
class Space:
    """The names of a module, a class, a function or an instance; or a dictionary, its own owner."""

    owner: Any
    label: str
    now: Mapping[Any, Any]
    before: dict[Any, Any]

    @property
    def changed(self) -> list[Any]:
        """The keys whose values are not what they were."""
        keys = dict.fromkeys((*self.before, *self.now))
        differ = [k for k in keys if self.now.get(k, GONE) is not self.before.get(k, GONE)]
        return [key for key in differ if not self._grew(key)]

    def _grew(self, key: Any) -> bool:
        """Whether nobody meant it: a package has each of its modules that is imported."""
        if not isinstance(self.owner, ModuleType | type) or key in self.before:
            return False
        module = sys.modules.get(f"{self.owner.__name__}.{key}")
        is_package = hasattr(self.owner, "__path__")
        return key in PYTHONS_OWN or (is_package and self.now.get(key) is module)

    def put_back(self) -> list[str]:
        changed = self.changed
        if not changed:
            return []
        if isinstance(self.now, dict) and not isinstance(self.owner, ModuleType):
            self.now.clear()  # so that the order is what it was too
            self.now.update(self.before)
        else:
            for key in changed:
                put(self.owner, key, self.before.get(key, GONE))
        if self.owner is self.now:
            return [f"what {self.label} holds"]
        return [f"{self.label}.{key}" for key in changed]


@dataclass
class Row:
    """A list or a set."""

    now: Any
    label: str
    before: tuple[Any, ...]

    @property
    def changed(self) -> bool:
        now, before = list(map(id, self.now)), list(map(id, self.before))
        return now != before if isinstance(self.now, list) else sorted(now) != sorted(before)

    def put_back(self) -> list[str]:
        if not self.changed:
            return []
        self.now.clear()
        (self.now.extend if isinstance(self.now, list) else self.now.update)(self.before)
        return [f"what {self.label} holds"]


@dataclass
class Fields:
    """What stands in no dictionary: of a function, a cell, a structure, an instance with slots."""

    owner: Any
    label: str
    names: tuple[str, ...]
    before: tuple[Any, ...]

    @property
    def changed(self) -> dict[str, Any]:
        """What they were, of the fields that are something else."""
        pairs = zip(self.names, self.before, strict=True)
        return {name: own for name, own in pairs if getattr(self.owner, name, GONE) is not own}

    def put_back(self) -> list[str]:
        changed = self.changed
        for name, own in changed.items():
            if isinstance(self.owner, msgspec.Struct) and name not in OF_INSTANCES:
                force_setattr(self.owner, name, own)
            else:
                put(self.owner, name, own)
        return [
            SAID.get(name, "{label}.{name}").format(label=self.label, name=name) for name in changed
        ]


@dataclass
class Found:
    """All that can be reached, each once, by its id."""

    spaces: dict[int, Space] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    fields: dict[int, Fields] = field(default_factory=dict)
    _seen: dict[int, Any] = field(default_factory=dict)  # held, so that ids stay theirs

    def all(self) -> Iterator[Space | Row | Fields]:
        """Modules and classes first, by which fields are looked up; then fields, by which an
        instance has its dictionary."""
        spaces = self.spaces.values()
        named = [each for each in spaces if isinstance(each.owner, ModuleType | type)]
        others = [each for each in spaces if not isinstance(each.owner, ModuleType | type)]
        return chain(named, self.fields.values(), others, self.rows.values())

    def leave_out(self, objects: Iterable[object]) -> None:
        """Note nothing of what these hold."""
        self._seen.update((id(each), each) for each in objects)

    def note(self, value: Any, label: str) -> None:
        """Note a value and everything that is reached from it."""
        waiting = deque([(value, label)])
        while waiting:
            value, label = waiting.popleft()
            unchanging = type(value) in UNCHANGING or value is BUILTINS
            if id(value) not in self._seen and not unchanging:
                self._seen[id(value)] = value
                waiting.extend(self._noted(value, label))

    def note_class(self, kind: type) -> None:
        """Note what a class of somebody else defines, and its functions."""
        for value, _ in self._space(kind, kind.__name__, vars(kind)):
            if isinstance(value, FunctionType):
                self.note_function(value)

    def note_function(self, function: FunctionType) -> list[Reached]:
        """Its code and defaults; of one of this package what it holds is returned."""
        label = function.__qualname__
        if id(function) in self.fields:
            return []
        self._note_fields(function, label, OF_FUNCTIONS)
        keywords = function.__kwdefaults__
        if keywords is not None:
            self._space(keywords, f"defaults of {label}", keywords)
        if not _is_own(function):
            return []
        inside = [*(function.__defaults__ or ()), *(keywords or {}).values()]
        for cell in filter(_is_filled, function.__closure__ or ()):
            self._note_fields(cell, label, ("cell_contents",))
            inside.append(cell.cell_contents)
        return [(each, label) for each in (*inside, *function.__dict__.values())]

    def _noted(self, value: Any, label: str) -> Iterable[Reached]:
        """Note one value; what it holds is returned."""
        if isinstance(value, FunctionType):
            return self.note_function(value) if _is_own(value) else ()
        if isinstance(value, ModuleType):
            return self._space(value, label, vars(value)) if _is_own_module(value) else ()
        if isinstance(value, type):
            return self._space(value, value.__name__, vars(value)) if _is_own(value) else ()
        if isinstance(value, dict | MappingProxyType):
            return self._space(value, label, value)
        if isinstance(value, list | set):
            self.rows[id(value)] = Row(value, label, tuple(value))
        if isinstance(value, list | set | tuple | frozenset):
            return [(each, label) for each in value]
        behind = [(each, label) for each in _behind(value)]
        return [*behind, *self._instance(value, label)] if _is_own(type(value)) else behind

    def _space(self, owner: Any, label: str, now: Mapping[Any, Any]) -> list[Reached]:
        self.spaces[id(owner)] = Space(owner, label, now, dict(now))
        return [(value, f"{label}.{key}") for key, value in now.items()]

    def _instance(self, value: Any, label: str) -> list[Reached]:
        own = getattr(value, "__dict__", None)
        names = (*_slots(value), *OF_INSTANCES[: 1 if own is None else 2])
        self._note_fields(value, label, names)
        inside = [(getattr(value, name), f"{label}.{name}") for name in _slots(value)]
        return inside if own is None else [*inside, *self._space(value, label, own)]

    def _note_fields(self, owner: Any, label: str, names: tuple[str, ...]) -> None:
        before = tuple(getattr(owner, name) for name in names)
        self.fields[id(owner)] = Fields(owner, label, names, before)


def _is_own_module(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == PACKAGE


def _is_own(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == PACKAGE


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - asking an empty one raises
    except ValueError:
        return False
    return True


def _behind(value: Any) -> Iterator[Any]:
    """What a descriptor or a wrapper calls."""
    if isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, classmethod | staticmethod | MethodType):
        yield value.__func__
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif hasattr(type(value), "cache_info"):  # of functools.cache
        yield value.__wrapped__


def _slots(value: Any) -> tuple[str, ...]:
    """The fields of an instance that are set and stand in no dictionary."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    own = chain.from_iterable(vars(kind).items() for kind in type(value).__mro__ if _is_own(kind))
    names = [name for name, each in own if isinstance(each, MemberDescriptorType)]
    return tuple(name for name in dict.fromkeys(names) if hasattr(value, name))
