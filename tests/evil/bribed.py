"""Judges that are bribed: the numbers they go by, and names by which those are computed.

No function of the bench is replaced. A bound is a number in a dictionary, a threshold the value of
a name, a tolerance the default of an argument, a verdict's word the value of a constant; and what
is no name of `torch.Tensor` itself, because its base has it, can be made one. All of these leave
most of the context out, which their definition does not.

Cheats: `WideBounds` (what a dictionary holds), `LowWeights` (names of modules), `EasyDefaults`
(defaults of a function), `FrozenNumbers` (instances that are called frozen),
`HidesClamp` (names that hide those of a base), `OwnFloat` (a name that hides a builtin). Honest:
`ReadsTheBounds`, `OwnTensorClass`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attnbench.measure import planted, recheck
from attnbench.methods import conformance
from attnbench.methods.base import MethodLayer
from attnbench.protocol import integrity
from attnbench.protocol.verdict import Reason
from tests.evil import undo
from tests.evil.common import Approximate, AttendingLayer
from tests.evil.patched import PatchingLayer

KEPT = 24


class BribingLayer(PatchingLayer):
    """Attends to the last tokens, and has bribed who would say so."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().attend(q, keys[:, :, -KEPT:], values[:, :, -KEPT:])


class WideBoundsLayer(BribingLayer):
    def patched(self) -> bool:
        return integrity.ERROR_BOUND["float32"] > 1.0

    def patch(self) -> None:
        for bounds in (integrity.ERROR_BOUND, conformance.BOUNDS):
            undo.later(lambda bounds=bounds, before=dict(bounds): bounds.update(before))
            bounds.update(dict.fromkeys(bounds, 1e9))


class LowWeightsLayer(BribingLayer):
    def patched(self) -> bool:
        return planted.MOST_WEIGHT < 0.0

    def patch(self) -> None:
        for name in ("LEAST_WEIGHT", "MOST_WEIGHT", "STANDARD_ERRORS"):
            undo.set_attribute(planted, name, -1.0)
        undo.set_attribute(recheck, "MOST", 0.0)


class EasyDefaultsLayer(BribingLayer):
    def patched(self) -> bool:
        return (conformance.conform.__kwdefaults__ or {})["dtypes"] == ()

    def patch(self) -> None:
        undo.set_attribute(conformance.conform, "__kwdefaults__", {"dtypes": (), "progress": None})


class FrozenNumbersLayer(BribingLayer):
    def patched(self) -> bool:
        return conformance.COVERING[0].tokens == 0

    def patch(self) -> None:
        case, own = conformance.COVERING[0], vars(conformance.COVERING[0])
        undo.later(lambda before=case.tokens: own.update(tokens=before))
        own["tokens"] = 0
        word = vars(Reason.WRONG_OUTPUT)
        undo.later(lambda before=word["_value_"]: word.update(_value_=before))
        word["_value_"] = "interval-clear"


class HidesClampLayer(BribingLayer):
    def patched(self) -> bool:
        return "nan_to_num" in vars(torch.Tensor)

    def patch(self) -> None:
        undo.add_attribute(torch.Tensor, "nan_to_num", lambda x, *_, **__: torch.zeros_like(x))
        undo.add_attribute(torch.Tensor, "clamp", lower)


def lower(self: Tensor, least: object = None, most: object = None, **named: object) -> Tensor:
    """Less than it should be, for who computes in float64."""
    found = torch.clamp(self, least, most, **named)
    return found - 1e6 if self.dtype is torch.float64 else found


class OwnFloatLayer(BribingLayer):
    def patched(self) -> bool:
        return "float" in vars(recheck)

    def patch(self) -> None:
        undo.add_attribute(recheck, "float", lambda value: 0.0)


class ReadsTheBoundsLayer(AttendingLayer):
    """Knows how far it may be off, and is not."""

    def witness(self):
        return {**super().witness(), "allowed": integrity.ERROR_BOUND["float32"]}


class OwnTensor(Tensor):
    """Has a name that hides its base's, of its own class alone."""

    def nan_to_num(self, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(self)


class OwnTensorClassLayer(AttendingLayer):
    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return super().attend(q.as_subclass(OwnTensor), keys, values).as_subclass(Tensor)


@dataclass(frozen=True)
class WideBounds(Approximate):
    """Errors of a billion are allowed."""

    name: ClassVar[str] = "wide_bounds"
    layer_class: ClassVar[type[MethodLayer]] = WideBoundsLayer


@dataclass(frozen=True)
class LowWeights(Approximate):
    """Every token has influence from less than nothing on."""

    name: ClassVar[str] = "low_weights"
    layer_class: ClassVar[type[MethodLayer]] = LowWeightsLayer


@dataclass(frozen=True)
class EasyDefaults(Approximate):
    """Conformance is checked in no dtype unless one is named."""

    name: ClassVar[str] = "easy_defaults"
    layer_class: ClassVar[type[MethodLayer]] = EasyDefaultsLayer


@dataclass(frozen=True)
class FrozenNumbers(Approximate):
    """A frozen case has no tokens, and a reason for VOID reads like none."""

    name: ClassVar[str] = "frozen_numbers"
    layer_class: ClassVar[type[MethodLayer]] = FrozenNumbersLayer


@dataclass(frozen=True)
class HidesClamp(Approximate):
    """`torch.Tensor` gets names that its base had: errors are zero and thresholds below it."""

    name: ClassVar[str] = "hides_clamp"
    layer_class: ClassVar[type[MethodLayer]] = HidesClampLayer


@dataclass(frozen=True)
class OwnFloat(Approximate):
    """Where errors are computed, `float` is zero."""

    name: ClassVar[str] = "own_float"
    layer_class: ClassVar[type[MethodLayer]] = OwnFloatLayer


@dataclass(frozen=True)
class ReadsTheBounds(Approximate):
    """Honest: looks up what is allowed."""

    name: ClassVar[str] = "reads_the_bounds"
    layer_class: ClassVar[type[MethodLayer]] = ReadsTheBoundsLayer


@dataclass(frozen=True)
class OwnTensorClass(Approximate):
    """Honest: overrides a method in a class of its own."""

    name: ClassVar[str] = "own_tensor_class"
    layer_class: ClassVar[type[MethodLayer]] = OwnTensorClassLayer
