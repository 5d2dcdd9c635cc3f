"""Finds methods and reads how the command line names them: `name,key=value,key=value`.

Built-in methods are found by scanning this package; others through the entry-point group
`attnbench.methods`, as `package.module:Class`, or as `path/file.py:Class`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Literal, get_args, get_origin, get_type_hints

from attnbench.errors import AttnbenchError, UsageError
from attnbench.methods.base import Family, Method

GROUP = "attnbench.methods"
# Source of these packages belongs to the method that imports it.
IMPLEMENTATION_PACKAGES = (
    "attnbench.kernels.",
    "attnbench.methods.",
    "attnbench.protocol.recomputed.",
)


def parse(spec: str) -> Method:
    """The method that `spec` names, with its parameters; `UsageError` says what is nearest."""
    target, *assignments = (part.strip() for part in spec.split(","))
    if not target:
        raise UsageError(
            f"{spec!r} names no method",
            hint="`attnbench methods list` shows all; a class of your own is file.py:Class",
        )
    method_class = find_class(target)
    given = [read_parameter(method_class, text) for text in assignments]
    values = dict(given)
    if len(values) < len(given):
        twice = next(name for name in values if [each for each, _ in given].count(name) > 1)
        raise UsageError(f"{target} is given {twice!r} more than once", hint="give it once")
    return method_class(**values)


def names() -> tuple[str, ...]:
    """Every method that is built in or installed, by name."""
    return tuple(sorted(installed()))


def method_class(name: str) -> type[Method]:
    """The class of an installed method, by its name."""
    if name not in installed():
        near = nearest(name, names())
        raise UsageError(
            f"there is no method {name!r}" + (f"; did you mean {near}?" if near else ""),
            hint="`attnbench methods list` shows all; a class of your own is file.py:Class",
        )
    return installed()[name]


def exact_methods(device_type: str) -> list[Method]:
    """Every exact arm worth timing on this type of device ("cuda", "cpu")."""
    exact = (found for found in installed().values() if found.family is Family.EXACT)
    return [variant for found in exact for variant in found.variants(device_type)]


def every_implementation(name: str, device_type: str) -> list[Method]:
    """All variants of an installed method in all implementations, also those that cannot run."""
    found = method_class(name)
    variants = found.variants(device_type) or (found(),)
    return [each for variant in variants for each in implementations_of(variant)]


def implementations_of(method: Method) -> list[Method]:
    """A method whose implementation is open, in each of them; else the method alone."""
    if getattr(method, method.choice, None) != "":
        return [method]
    changes: list[dict[str, str]] = [{method.choice: impl} for impl in method.available]
    return [replace(method, **change) for change in changes]


def source_sha256(method: Method) -> str:
    """SHA-256 over the source of a method and of the kernels and methods that it imports."""
    digest = hashlib.sha256()
    for path in source_files(type(method)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def source_files(found: type[Method]) -> list[Path]:
    """The file that defines a method, then the implementation files it imports, sorted."""
    first = Path(inspect.getfile(found)).resolve()
    reached: set[Path] = set()
    waiting = [first]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(implementation_imports(path))
    return [first, *sorted(reached - {first})]


def implementation_imports(path: Path) -> Iterator[Path]:
    """Files of `IMPLEMENTATION_PACKAGES` that a source file imports, at any depth of its code."""
    for module in implementation_modules(path.read_bytes()):
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            yield Path(spec.origin)


@cache
def implementation_modules(source: bytes) -> tuple[str, ...]:
    """Modules of `IMPLEMENTATION_PACKAGES` that a source imports; many methods share a kernel."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom))
    modules = (node.module for node in nodes if node.module)
    return tuple(module for module in modules if module.startswith(IMPLEMENTATION_PACKAGES))


@cache
def installed() -> Mapping[str, type[Method]]:
    """Built-in methods and those of entry points; two of one name are an error."""
    found: dict[str, type[Method]] = {}
    for candidate in (*built_in(), *from_entry_points()):
        if found.setdefault(candidate.name, candidate) is not candidate:
            raise UsageError(
                f"two methods are named {candidate.name!r}: {found[candidate.name].__module__} and "
                f"{candidate.__module__}",
                hint="uninstall one, or give it another name",
            )
    return MappingProxyType(found)


def built_in() -> Iterator[type[Method]]:
    """Methods that a module of this package defines."""
    package = importlib.import_module("attnbench.methods")
    for info in pkgutil.iter_modules(package.__path__, "attnbench.methods."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if is_method(value) and value.__module__ == module.__name__:
                yield value


def from_entry_points() -> Iterator[type[Method]]:
    """Methods that other installed packages declare."""
    for entry in entry_points(group=GROUP):
        yield require_method(entry.load(), f"entry point {entry.name} = {entry.value}")


def find_class(target: str) -> type[Method]:
    """The class behind `name`, `package.module:Class` or `path/file.py:Class`."""
    place, colon, attribute = target.rpartition(":")
    if not colon:
        return method_class(target)
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    if not hasattr(module, attribute):
        near = nearest(attribute, [n for n, value in vars(module).items() if is_method(value)])
        raise UsageError(
            f"{place} has no {attribute!r}" + (f"; did you mean {near}?" if near else ""),
            hint="name the class: file.py:Class",
        )
    return require_method(getattr(module, attribute), target)


def load_module(name: str) -> ModuleType:
    """Import a module by name; one that is not there is a usage error, one that fails is shown."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"cannot import {name!r}: {error}",
            hint="is it on PYTHONPATH? Or use path/file.py:Class",
        ) from error


def load_file(path: Path) -> ModuleType:
    """Execute a file as a module of its own; the same file is loaded once."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="give its path from here")
    name = f"attnbench_file_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded as Python", hint="it must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise AttnbenchError(
            f"{path} fails while it is loaded: {type(error).__name__}: {error}",
            hint=f"`python {path}` shows where",
        ) from error
    return module


def is_method(value: object) -> bool:
    """Whether `value` is a method that can be built."""
    return isinstance(value, type) and issubclass(value, Method) and not inspect.isabstract(value)


def require_method(value: object, where: str) -> type[Method]:
    """`value` as a method class, or a usage error that says what it lacks."""
    if isinstance(value, type) and issubclass(value, Method):
        lacking = sorted(getattr(value, "__abstractmethods__", frozenset()))
        lacking += [name for name in ("name", "family", "source") if not hasattr(value, name)]
        if not lacking:
            return value
        raise UsageError(f"{where} lacks {', '.join(lacking)}", hint="see attnbench.methods.base")
    raise UsageError(f"{where} is no method", hint="it must be a subclass of Method")


def read_parameter(found: type[Method], text: str) -> tuple[str, object]:
    """One `key=value` as a field of the method and a value of its type."""
    key, equals, value = (part.strip() for part in text.partition("="))
    known = [field.name for field in fields(found)]
    if not equals or key not in known:
        near = nearest(key, known)
        raise UsageError(
            f"{found.name} has no parameter {key!r}" + (f"; did you mean {near}?" if near else ""),
            hint=f"its parameters: {', '.join(known) or 'none'}; written {found.name},key=value",
        )
    if key == found.choice:
        return key, chosen(found, key, value, found.implementations)
    return key, coerce(found, key, value, get_type_hints(found)[key])


def coerce(found: type[Method], key: str, value: str, kind: object) -> object:
    """`value` as `kind`: int, float, bool, str or one of a Literal's strings."""
    if get_origin(kind) is Literal:
        return chosen(found, key, value, get_args(kind))
    if kind is bool:
        return chosen(found, key, value.lower(), ("true", "false")) == "true"
    if kind is str:
        return value
    if kind is not int and kind is not float:
        raise UsageError(
            f"{found.name}: {key} cannot be set on the command line", hint=f"it is a {kind}"
        )
    try:
        return int(value) if kind is int else float(value)
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise UsageError(
            f"{found.name}: {key}={value!r} is not {expected}", hint=f"{found.name},{key}=NUMBER"
        ) from error


def chosen(found: type[Method], key: str, value: str, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of `choices`."""
    if value not in choices:
        near = nearest(value, choices)
        raise UsageError(
            f"{found.name}: {key}={value!r} is not one of {', '.join(choices)}"
            + (f"; did you mean {near}?" if near else ""),
            hint=f"{found.name},{key}={choices[0]}",
        )
    return value


def nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    """The known word that looks most like `word`; empty where none does."""
    return next(iter(get_close_matches(word, known, n=1, cutoff=0.5)), "")
