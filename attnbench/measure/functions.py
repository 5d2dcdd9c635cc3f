"""What times, judges and computes for every arm: names of libraries, and all of this package."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
import os
import pkgutil
import random
import secrets
import statistics
import sys
import time
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

import msgspec
import numpy
import torch
import torch.functional
import torch.linalg
from torch import _tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional

from attnbench import methods
from attnbench.measure.held import Held, Named
from attnbench.measure.reached import PACKAGE
from attnbench.models import few_rows, opaque

# Compilers replace others of `nn.Module`, which build modules.
CALLS = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__")
# Of these all that can be called; the former are what verdicts are computed with.
ARITHMETIC = (
    *(builtins, math, operator, random, secrets, statistics, time),
    *(msgspec, msgspec.json, msgspec.structs),
)
LIBRARIES: tuple[Any, ...] = (
    *ARITHMETIC,
    *(torch, torch.functional, torch.linalg, _tensor, functional, torch._C._nn),
)
# It follows the default dtype, which is a setting.
FOLLOWS = (torch, "Storage")
# And of these everything: a name that was not there hides that of a base.
CLASSES: tuple[type, ...] = (
    *(torch.Tensor, torch._C.TensorBase, random.SystemRandom, torch.cuda.Event),
    *(torch.cuda.CUDAGraph,),
)
SINGLE: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (numpy, ("stack", "array", "savez_compressed")),
    (os, ("urandom",)),
    (torch.cuda, ("Event", "synchronize", "CUDAGraph", "current_stream")),
    (nn.Module, CALLS),
)
# What changes while arms take turns: whose layers attend, how products are launched while the
# compiled model runs, and what PyTorch's compiler counts.
CHANGING = (opaque.turn, few_rows.chosen, counters)
# What brings in all that measures.
ENTRANCES = (
    *("measure.session", "measure.pilot", "measure.judging", "measure.nvml", "measure.settings"),
    "kernels.fold",
)


def guarded() -> Held:
    """What timing, statistics and attention are made of, as it is now."""
    return Held(names_of_libraries(), CLASSES, own_modules(ENTRANCES), CHANGING)


def names_of_libraries() -> Named:
    """Of others' modules what this package uses and more."""
    named = {(owner, name): vars(owner)[name] for owner, names in SINGLE for name in names}
    named |= callables_of(*LIBRARIES)
    del named[FOLLOWS]
    return named


def names_of_model(model: nn.Module) -> Named:
    """What the modules of a model compute with: their classes and where those are defined."""
    kinds = {kind for part in model.modules() for kind in type(part).__mro__} - {nn.Module}
    places = {sys.modules.get(kind.__module__) for kind in kinds if issubclass(kind, nn.Module)}
    named: Named = {}
    for module in filter(None, places):
        named |= _names_of_module(module)
    return named


def _names_of_module(module: ModuleType) -> Named:
    """What can be called in a module, and the functions of the classes that it defines."""
    named = callables_of(module)
    for kind in list(named.values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            named |= _own_functions(kind)
    return named


def callables_of(*modules: Any) -> Named:
    """What can be called in these modules, by module and name."""
    return {(m, name): value for m in modules for name, value in vars(m).items() if callable(value)}


def _own_functions(kind: type) -> Named:
    own = vars(kind).items()
    return {(kind, name): value for name, value in own if isinstance(value, FunctionType)}


def own_modules(entrances: Iterable[str]) -> list[ModuleType]:
    """The modules of this package: its methods, `entrances`, and what is imported by then."""
    built_in = [f"methods.{found.name}" for found in pkgutil.iter_modules(methods.__path__)]
    for name in (*entrances, *built_in):
        importlib.import_module(f"{PACKAGE}.{name}")
    return [m for name, m in sys.modules.items() if name.partition(".")[0] == PACKAGE]
