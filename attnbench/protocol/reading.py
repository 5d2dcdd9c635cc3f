"""From the bytes of a protocol file to the protocol, or to everything that is wrong with it."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UsageError
from attnbench.protocol.checks import senseless
from attnbench.protocol.document import ProtocolFile
from attnbench.protocol.strict import Problem, read_table


class BadProtocol(UsageError):
    """A protocol file that cannot be what is meant; `problems` holds all of it."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(
            f"{name} has {count}{lines}",
            hint="docs/protocols.md explains every key; `attnbench protocol new ID` writes an "
            "example",
        )
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Source:
    """A protocol and the very bytes that say it."""

    file: ProtocolFile
    text: str
    name: str  # what to call the place where it was found

    @property
    def sha256(self) -> str:
        """Of the bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_file(path: Path) -> Source:
    """Read a protocol file; raises BadProtocol with all of its problems, and UsageError where it
    cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", hint="`attnbench protocol list` lists them"
        ) from None
    return read(data, str(path))


def is_protocol(path: Path) -> bool:
    """Whether a TOML file is meant to be a protocol: one with several claims is a list of them."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return True  # reading it will say what is wrong
    return not isinstance(table.get("claim"), list)


def read(data: bytes, name: str) -> Source:
    """Read the bytes of a protocol file; raises BadProtocol."""
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except UnicodeDecodeError:
        raise BadProtocol(name, [Problem("", "it is no UTF-8 text")]) from None
    except tomllib.TOMLDecodeError as error:
        raise BadProtocol(name, [Problem("", f"it is no TOML: {error}")]) from None
    problems: list[Problem] = []
    found = read_table(ProtocolFile, table, "", problems)
    problems += senseless(found)
    if problems:
        raise BadProtocol(name, problems)
    return Source(ProtocolFile(**found), text, name)
