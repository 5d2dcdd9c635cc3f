"""The numbers that judge are what they were: names, contents, defaults, closures, instances."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import msgspec
import pytest

from attnbench.measure.held import Held

SOURCE = """
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
import msgspec

LIMIT = 0.25
BOUNDS = {"float32": 5e-5, "inner": {"deep": [1, 2]}}
ORDER, NAMES = [1, 2], {"a", "b"}

class Kind(StrEnum):
    ONE = "one"

class Band(msgspec.Struct, frozen=True):
    low: float

@dataclass(frozen=True)
class Frozen:
    size: int = 3

@dataclass(frozen=True, slots=True)
class Slotted:
    size: int = 3

class Judge:
    least = 4.0

    @property
    def said(self):
        return "right"

    @classmethod
    def made(cls):
        return cls()

BAND, CASE, SLIM = Band(0.5), (Frozen(), [Frozen()]), Slotted()

def judged(value, bound=0.5, *, share=1.0):
    return value < bound * share

def closing(limit):
    def within(value):
        return value < limit
    return within

within = closing(2.0)
half = partial(judged, bound=BOUNDS)

@cache
def preset(name):
    return 2.0
"""


@dataclass
class Case:
    """A change of the module, and what is told of it."""

    change: Callable[[ModuleType], object]
    told: str


def set_slot(m: ModuleType) -> None:
    object.__setattr__(m.SLIM, "size", 9)


def set_member(m: ModuleType) -> None:
    m.Kind.ONE._value_ = "two"


def set_closure(m: ModuleType) -> None:
    m.within.__closure__[0].cell_contents = 9.0


def set_getter(m: ModuleType) -> None:
    m.Judge.said.fget.__code__ = (lambda self: "wrong").__code__


def set_kwdefaults(m: ModuleType) -> None:
    m.judged.__kwdefaults__["share"] = 9.0


def rename_last(m: ModuleType) -> None:
    """The value stays where it was, under another name."""
    vars(m)["half"] = vars(m).pop("half")
    vars(m)["other"] = vars(m).pop("half")


CHANGES = {
    "a number": Case(lambda m: setattr(m, "LIMIT", 9.0), "LIMIT"),
    "a dictionary": Case(lambda m: m.BOUNDS.update(float32=1e9), "what attnbench.made_up.BOUNDS"),
    "another key": Case(lambda m: m.BOUNDS.update(new=1.0), "what attnbench.made_up.BOUNDS"),
    "one further in": Case(lambda m: m.BOUNDS["inner"].clear(), "BOUNDS.inner"),
    "a list in it": Case(lambda m: m.BOUNDS["inner"]["deep"].append(3), "BOUNDS.inner.deep"),
    "a list": Case(lambda m: m.ORDER.reverse(), "what attnbench.made_up.ORDER holds"),
    "a set": Case(lambda m: m.NAMES.add("c"), "what attnbench.made_up.NAMES holds"),
    "a class's number": Case(lambda m: setattr(m.Judge, "least", 9.0), "Judge.least"),
    "a name that hides a builtin": Case(lambda m: setattr(m, "max", min), "attnbench.made_up.max"),
    "a class's new name": Case(lambda m: setattr(m.Judge, "__eq__", id), "Judge.__eq__"),
    "a frozen instance": Case(lambda m: vars(m.CASE[0]).update(size=9), "CASE.size"),
    "one in a list": Case(lambda m: vars(m.CASE[1][0]).update(size=9), "CASE.size"),
    "an instance with slots": Case(set_slot, "SLIM.size"),
    "a structure": Case(lambda m: msgspec.structs.force_setattr(m.BAND, "low", 9.0), "BAND.low"),
    "a member's value": Case(set_member, "Kind.ONE._value_"),
    "an instance's class": Case(
        lambda m: object.__setattr__(m.CASE[0], "__class__", type("F", (m.Frozen,), {})),
        "the class of",
    ),
    "an instance's dictionary": Case(
        lambda m: object.__setattr__(m.CASE[0], "__dict__", {"size": 9}), "CASE holds"
    ),
    "defaults": Case(lambda m: setattr(m.judged, "__defaults__", (9.0,)), "the defaults of judged"),
    "defaults by name": Case(set_kwdefaults, "what defaults of judged holds"),
    "a closure": Case(set_closure, "what closing.<locals>.within closes over"),
    "code behind a property": Case(set_getter, "the code of Judge.said"),
    "code behind a class method": Case(
        lambda m: setattr(m.Judge.made.__func__, "__code__", (lambda cls: 1).__code__),
        "the code of Judge.made",
    ),
    "code behind a cache": Case(
        lambda m: setattr(m.preset.__wrapped__, "__code__", (lambda name: 9.0).__code__),
        "the code of preset",
    ),
    "what a partial is given": Case(lambda m: m.half.keywords.clear(), "half holds"),
    "a name that is gone": Case(lambda m: delattr(m, "LIMIT"), "attnbench.made_up.LIMIT"),
    "a name given to another": Case(rename_last, "attnbench.made_up.half"),
}


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("attnbench.made_up")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(SOURCE, made.__name__, "exec", dont_inherit=True), vars(made))
    return made


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_told_once_and_put_back(name, module):
    held, case = Held({}, modules=[module]), CHANGES[name]
    assert held.is_unchanged()
    case.change(module)
    assert not held.is_unchanged()
    told, stays = held.put_back()
    assert case.told in ", ".join(told)
    assert len(told) == (2 if name == "a name given to another" else 1)
    assert not stays
    assert held.is_unchanged()
    assert held.put_back() == ([], False)


@pytest.mark.parametrize("name", [name for name in CHANGES if "given to another" not in name])
def test_the_quick_look_sees_it_too(name, module):
    held = Held({}, modules=[module])
    assert held.is_unchanged(thoroughly=False)
    CHANGES[name].change(module)
    assert not held.is_unchanged(thoroughly=False)


def test_what_is_named_as_changing_may(module):
    held = Held({}, modules=[module], changing=[module.BOUNDS])
    module.BOUNDS["float32"] = 1.0
    assert held.is_unchanged()
    module.BOUNDS = {}
    assert held.put_back()[0] == ["attnbench.made_up.BOUNDS"]


def test_a_package_may_grow_by_its_own_modules_and_by_nothing_else(module, monkeypatch):
    module.__path__ = []
    held = Held({}, modules=[module])
    part = ModuleType("attnbench.made_up.part")
    monkeypatch.setitem(sys.modules, part.__name__, part)
    module.part = part
    module.__warningregistry__ = {}
    assert held.put_back() == ([], False)
    assert held.is_unchanged()
    module.other = part
    assert held.put_back() == (["attnbench.made_up.other"], False)


def test_what_python_lets_nobody_put_back_stays(monkeypatch):
    kind = type("Kind", (), {"name": 1})
    held = Held({}, classes=[kind])
    kind.name = 2
    with monkeypatch.context() as patch:
        patch.setattr("attnbench.measure.reached.put", lambda *_: None)
        assert held.put_back() == (["Kind.name"], True)
    assert held.put_back() == (["Kind.name"], False)


def test_an_impostor_that_says_it_is_equal_is_told(module):
    class SaysYes:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = object.__hash__

    held = Held({}, modules=[module])
    module.BOUNDS["float32"] = SaysYes()
    module.judged.__defaults__ = (SaysYes(),)
    assert len(held.put_back()[0]) == 2


def test_what_a_cache_keeps_is_its_own_business(module):
    held = Held({}, modules=[module])
    module.preset("a")
    assert held.is_unchanged()
    assert type(module.preset) is type(cache(id))
