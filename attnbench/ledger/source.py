"""Which source of attnbench writes a record: its version, and its git commit or its files' hash."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

import attnbench

TOOL = attnbench.__version__


@cache
def source_commit() -> str:
    """Return the commit of the attnbench source in use; where git does not track it, as where it
    was installed or copied, `files:` and a hash of its files.

    `<commit>-dirty` where a file of the package differs from that commit: the commit alone would
    then name code that did not run.
    """
    package = Path(attnbench.__file__).parent
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return f"files:{files_sha256(package)}"
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return f"files:{files_sha256(package)}"
    return f"{commit}-dirty" if _git(package, "status", "--porcelain", "--", ".") else commit


def files_sha256(package: Path) -> str:
    """Hash of every Python file of a package, with its place in it, in order."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
