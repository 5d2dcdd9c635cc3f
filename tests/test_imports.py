"""Imports point one way, and every file lives in a known room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "attnbench"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What each room may import besides itself and what every room may use: all that stands before it.
ROOMS = (
    {"stats", "ledger"},
    {"protocol"},
    {"kernels"},
    {"methods"},
    {"models"},
    {"quality"},
    {"measure"},
    {"report"},
    {"cli"},
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
SHARED = {"", "errors", "__version__"}  # what lies at the root
ROOT_FILES = {"__init__.py", "__main__.py", "errors.py"}
HEAVY = {"torch", "triton", "transformers", "safetensors", "matplotlib"}


def imported(source: str, package: str) -> Iterator[str]:
    """Every module that `source`, lying in `package`, names in an import.

    At the top, inside functions, and under TYPE_CHECKING alike; by `import_module` too.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from_import(node, package)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def _from_import(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    if module == "attnbench":  # what is imported from the package may be a room
        yield from (f"attnbench.{alias.name}" for alias in node.names)
    else:
        yield module


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def rooms_of(source: str, package: str) -> set[str]:
    """The rooms of attnbench that a source names."""
    own = [name.split(".") for name in imported(source, package) if isinstance(name, str)]
    return {parts[1] if len(parts) > 1 else "" for parts in own if parts[0] == "attnbench"}


def forbidden(package: str, source: str) -> set[str]:
    """The rooms that a file of `package` (attnbench.ROOM...) imports and must not."""
    room = package.split(".")[1]
    return {
        other
        for other in rooms_of(source, package) - SHARED - {room}
        if other not in RANK or RANK[other] >= RANK[room]
    }


def in_rooms(*rooms: str) -> list[Path]:
    return [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in rooms]


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_file_is_in_a_known_room():
    lost = [
        name(path)
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] not in RANK and name(path) not in ROOT_FILES
    ]
    assert lost == []


@pytest.mark.parametrize("path", in_rooms(*RANK), ids=name)
def test_a_file_imports_only_rooms_before_its_own(path):
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    assert forbidden(package, path.read_text()) == set()


@pytest.mark.parametrize("path", in_rooms("stats"), ids=name)
def test_statistics_need_numpy_and_scipy_only(path):
    roots = {module.split(".")[0] for module in imported(path.read_text(), "attnbench.stats")}
    assert not roots & (HEAVY | {"msgspec", "typer", "rich"})


@pytest.mark.parametrize("path", in_rooms("ledger", "protocol"), ids=name)
def test_records_and_protocols_need_no_torch(path):
    roots = {module.split(".")[0] for module in imported(path.read_text(), "attnbench.protocol")}
    assert not roots & HEAVY


def test_the_root_files_import_no_room_but_the_command_line():
    for file in ROOT_FILES & {name(path) for path in MODULES}:
        assert rooms_of((PACKAGE / file).read_text(), "attnbench") <= SHARED | {"cli"}


@pytest.mark.parametrize(
    "source",
    [
        "import attnbench.measure.worker",
        "from attnbench.measure import worker",
        "from attnbench import measure",
        "from ..measure import worker",
        "from .. import measure",
        "from ..measure.worker import main",
        "def late():\n    from attnbench.measure import worker",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import attnbench.measure",
        "import importlib\nimportlib.import_module('attnbench.measure.worker')",
        "from attnbench.nowhere import thing",
    ],
)
def test_a_wrong_import_is_seen_wherever_it_stands(source):
    assert forbidden("attnbench.protocol", source) != set()


@pytest.mark.parametrize(
    "source",
    [
        "from attnbench.errors import UsageError",
        "from attnbench import __version__, errors",
        "from attnbench.stats.ratio import session_ratio",
        "from . import cell",
        "from .cell import Cell",
        "import numpy",
    ],
)
def test_a_right_import_is_left_alone(source):
    assert forbidden("attnbench.protocol", source) == set()


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime_imports(path: Path) -> set[str]:
    """What importing a file imports: at the top, and not for type checkers alone."""
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    top = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.If)]
    found: set[str] = set()
    for node in top:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= set(imported(ast.unparse(node), package))
    return found


def reached_from(*modules: str) -> set[str]:
    """Every module that importing some of this package imports, its own and others'."""
    files = {module_of(path): path for path in MODULES}
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += runtime_imports(files[name]) if name in files else ()
    return seen


@pytest.mark.parametrize("module", ["attnbench.cli.ledger", "attnbench.cli.recompute_view"])
def test_the_ledger_and_building_its_results_again_need_no_torch(module):
    assert "attnbench.ledger.survey" in reached_from(module)
    assert not {name.split(".")[0] for name in reached_from(module)} & HEAVY


def test_what_an_import_reaches_is_followed_to_torch():
    assert "torch" in reached_from("attnbench.measure.plan")
