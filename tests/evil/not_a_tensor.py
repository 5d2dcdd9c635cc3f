"""Outputs that are lazy, subclassed or not materialised.

Array libraries with lazy evaluation make this the natural way to write code, and a bench that times
the call times the making of a promise. Whoever looks at the value is shown the right one.

Cheats: `Promise` (a wrapper subclass that computes when an operation meets it), `Disguised` (a
subclass that denies it by `__class__`, over a real buffer of the last value), `OwnMethods` (a plain
`torch.Tensor` whose instance has methods of its own), `Broadcast` (one head, expanded).
Honest: `SubclassInside`, `StridedOutput`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from attnbench.methods.base import MethodLayer
from tests.evil.common import AttendingLayer, Exact


class Promised(Tensor):
    """Has the shape and dtype of `like` and no data; `compute` is called at the first operation."""

    @staticmethod
    def __new__(cls, like: Tensor, compute: Callable[[], Tensor]) -> Promised:
        return Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=like.dtype, device=like.device, strides=like.stride()
        )

    def __init__(self, like: Tensor, compute: Callable[[], Tensor]) -> None:
        self.compute = compute

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(kept_promise, (args, kwargs or {}))
        return func(*args, **kwargs)


def kept_promise(value: Any) -> Any:
    return value.compute() if isinstance(value, Promised) else value


class Denier(Tensor):
    """Holds last time's data, says that it is a `Tensor`, and computes when a function meets it."""

    compute: Callable[[], Tensor]

    @property
    def __class__(self) -> type:
        return Tensor

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        # Not what asks for the shape or the type: a computed value would come too soon.
        if getattr(func, "__name__", "") != "__get__":
            args = tree_map(lambda x: x.compute() if type(x) is Denier else x, args)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class LazyLayer(AttendingLayer):
    """Clones its inputs, so that the value is right whenever it is asked for."""

    last: Tensor | None = None

    def promise(self, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        raise NotImplementedError

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.append(k, v)
        return self.promise(q, partial(self.value, q.clone(), k.clone(), v.clone(), keys, values))

    def value(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        cached = (torch.cat((rows[:, :, :-1], new), 2) for rows, new in ((keys, k), (values, v)))
        return self.attend(q, *cached)


class PromiseLayer(LazyLayer):
    def promise(self, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        return Promised(like, compute)


class DisguisedLayer(LazyLayer):
    def promise(self, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        output = like.clone().as_subclass(Denier)
        output.compute = compute
        return output


class OwnMethodsLayer(LazyLayer):
    def promise(self, like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        output = like.clone()
        for name in ("clone", "detach", "double", "float", "to", "cpu", "numpy", "contiguous"):
            setattr(output, name, partial(call_on, compute, name))
        return output


def call_on(compute: Callable[[], Tensor], name: str, *args: Any, **kwargs: Any) -> Any:
    return getattr(compute(), name)(*args, **kwargs)


class BroadcastLayer(AttendingLayer):
    """Attends with the mean query to the first KV head; all heads are that one, by stride 0."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (rows[:, :1] for rows in self.append(k, v))
        return self.attend(q.mean(dim=1, keepdim=True), keys, values).expand(q.shape)


class SubclassInsideLayer(AttendingLayer):
    """Wraps its query for its own use and returns what PyTorch returns."""

    class Marked(Tensor):
        """A subclass that changes nothing."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = self.attend(q.as_subclass(self.Marked), *self.append(k, v))
        return output.as_subclass(Tensor)


class StridedOutputLayer(AttendingLayer):
    """Fills [B,1,H,D], as some kernels do, and returns the transposed view."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = self.attend(q, *self.append(k, v))
        return output.transpose(1, 2).contiguous().transpose(1, 2)


@dataclass(frozen=True)
class Promise(Exact):
    """A wrapper subclass: nothing is computed unless an operation meets the output."""

    name: ClassVar[str] = "promise"
    layer_class: ClassVar[type[MethodLayer]] = PromiseLayer


@dataclass(frozen=True)
class Disguised(Exact):
    """`output.__class__ is Tensor` and `data_ptr()` is there; only `type(output)` is honest."""

    name: ClassVar[str] = "disguised"
    layer_class: ClassVar[type[MethodLayer]] = DisguisedLayer


@dataclass(frozen=True)
class OwnMethods(Exact):
    """`type(output) is Tensor`, a copy of q in memory, attention by `.clone()` and `.double()`."""

    name: ClassVar[str] = "own_methods"
    layer_class: ClassVar[type[MethodLayer]] = OwnMethodsLayer


@dataclass(frozen=True)
class Broadcast(Exact):
    """One head, expanded to all of them: the output has the shape and not the bytes."""

    name: ClassVar[str] = "broadcast"
    layer_class: ClassVar[type[MethodLayer]] = BroadcastLayer


@dataclass(frozen=True)
class SubclassInside(Exact):
    """Honest: a subclass inside, a plain tensor outside."""

    name: ClassVar[str] = "subclass_inside"
    layer_class: ClassVar[type[MethodLayer]] = SubclassInsideLayer


@dataclass(frozen=True)
class StridedOutput(Exact):
    """Honest: every element computed, not contiguous."""

    name: ClassVar[str] = "strided_output"
    layer_class: ClassVar[type[MethodLayer]] = StridedOutputLayer
