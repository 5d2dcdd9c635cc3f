"""Which source of attnbench writes a record: its version and its git commit."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import attnbench

TOOL = attnbench.__version__


@cache
def source_commit() -> str | None:
    """Return the commit of the attnbench source in use, or None when git does not track it.

    `<commit>-dirty` where a file of the package differs from that commit: the commit alone would
    then name code that did not run.
    """
    package = Path(attnbench.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    return f"{commit}-dirty" if commit and changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
