"""The functions that time, judge and compute for every arm, by owner and name."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import random
import statistics
import sys
import time
from collections import defaultdict
from operator import attrgetter, is_
from types import FunctionType, ModuleType
from typing import Any

import msgspec
import numpy
import torch
from torch import nn
from torch.nn import functional

from attnbench import methods

Named = dict[tuple[Any, str], Any]
PACKAGE = "attnbench"
TENSOR_NAMES = (
    *("__getitem__", "__matmul__", "__mul__", "__add__", "clone", "contiguous", "copy_", "cpu"),
    *("detach", "double", "expand", "flatten", "index_copy_", "mean", "norm", "pow", "reshape"),
    *("softmax", "sum", "to", "tolist", "transpose", "view", "zero_"),
    *("log_softmax", "gather", "scatter", "topk", "amax", "all", "any", "exp", "abs", "max"),
    *("clamp_min", "masked_fill", "isfinite", "isnan", "float", "numpy", "__sub__", "__truediv__"),
    *("__neg__", "__eq__", "__gt__", "__lt__", "__le__", "__ge__", "__and__", "__or__"),
)
# Compilers replace others of `nn.Module`, which build modules.
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__")
TORCH_NAMES = (
    *("softmax", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "embedding", "rms_norm"),
    *("layer_norm", "rsqrt", "cos", "sin", "isfinite", "equal", "cat", "stack", "set_num_threads"),
    *("where", "minimum", "rand", "randn", "tensor", "zeros", "zeros_like", "arange", "full"),
)
# What brings in all that measures. No name in this package's modules or in a class of theirs may
# change its meaning, no function its code.
ENTRANCES = (
    *("measure.session", "measure.pilot", "measure.judging", "measure.nvml", "measure.settings"),
    "kernels.fold",
)


def guarded_names() -> Named:
    """What timing, statistics and attention are made of, by owner and name."""
    owners: tuple[tuple[Any, tuple[str, ...]], ...] = (
        (time, ("perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "time", "sleep")),
        (statistics, ("median", "fmean", "mean")),
        (math, ("fsum", "sqrt", "exp", "log")),
        (numpy, ("stack", "array", "savez_compressed")),
        (msgspec.json, ("encode", "decode")),
        (os, ("urandom",)),
        (random.SystemRandom, ("random", "getrandbits")),
        (torch.cuda, ("Event", "synchronize", "CUDAGraph", "current_stream")),
        (torch.cuda.Event, ("record", "elapsed_time", "synchronize", "query")),
        (torch.cuda.CUDAGraph, ("replay", "capture_begin", "capture_end")),
        (torch._C._nn, ("scaled_dot_product_attention", "linear", "silu", "gelu")),
        (torch, TORCH_NAMES),
        (torch.Tensor, TENSOR_NAMES),
        (nn.Module, CALLS),
    )
    named = {(owner, name): getattr(owner, name) for owner, names in owners for name in names}
    named |= _callables(functional)
    for module in _guarded_modules():
        named |= names_of_module(module)
    return named


def names_of_module(module: ModuleType) -> Named:
    """What can be called in a module, and the functions of the classes that it defines."""
    named = _callables(module)
    for kind in list(named.values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            named |= _own_functions(kind)
    return named


def names_of_model(model: nn.Module) -> Named:
    """What the modules of a model compute with: their classes and where those are defined."""
    kinds = {kind for part in model.modules() for kind in type(part).__mro__} - {nn.Module}
    places = {sys.modules.get(kind.__module__) for kind in kinds if issubclass(kind, nn.Module)}
    named: Named = {}
    for module in filter(None, places):
        named |= names_of_module(module)
    return named


def _callables(module: ModuleType) -> Named:
    return {(module, name): value for name, value in vars(module).items() if callable(value)}


def _own_functions(kind: type) -> Named:
    own = vars(kind).items()
    return {(kind, name): value for name, value in own if isinstance(value, FunctionType)}


def code_of(named: Named) -> dict[FunctionType, Any]:
    """The code of every Python function among them."""
    functions = [value for value in named.values() if isinstance(value, FunctionType)]
    return {function: function.__code__ for function in functions}


class Names:
    """Whether thousands of names mean what they meant, told in a millisecond.

    Only that: which one does not is for a slower look.
    """

    def __init__(self, named: Named, code: dict[FunctionType, Any]) -> None:
        by_owner: dict[Any, dict[str, Any]] = defaultdict(dict)
        for (owner, name), value in named.items():
            by_owner[owner][name] = value
        # With one name more than it needs: of a single one no tuple would come.
        self._owners = [
            (owner, attrgetter(*values, "__class__"), (*values.values(), type(owner)))
            for owner, values in by_owner.items()
        ]
        self._functions, self._codes = tuple(code), tuple(code.values())
        self._code_of = attrgetter("__code__")

    def are_unchanged(self) -> bool:
        """By identity: an impostor may say that it is equal."""
        try:
            return all(
                all(map(is_, values_of(owner), values)) for owner, values_of, values in self._owners
            ) and all(map(is_, map(self._code_of, self._functions), self._codes))
        except AttributeError:
            return False


def _guarded_modules() -> list[ModuleType]:
    built_in = [f"methods.{found.name}" for found in pkgutil.iter_modules(methods.__path__)]
    for name in (*ENTRANCES, *built_in):
        importlib.import_module(f"{PACKAGE}.{name}")
    return [module for name, module in sys.modules.items() if name.startswith(f"{PACKAGE}.")]
