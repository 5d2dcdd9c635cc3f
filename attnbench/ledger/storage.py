"""The file under a ledger: its lock, its last line, and one durable write."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnbench.ledger.faults import LedgerUnavailable

_TAIL_BYTES = 64 * 1024


@contextmanager
def locked_for_append(path: Path) -> Iterator[int]:
    """Open a ledger for writing, created with its folder where missing, and hold its lock.

    The lock is on the file itself and waits without polling; other processes, and other names of
    the same file, wait for it. Yields a descriptor. Raises LedgerUnavailable where the file system
    says no, there or in the block.
    """
    with explained(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = _open_locked(path)
        try:
            yield fd
        finally:
            os.close(fd)


def require_writable(path: Path) -> None:
    """Raise LedgerUnavailable where a file could not be written at `path`.

    It is tried: what the file system says of rights is not what it does. A file that is there is
    opened; else a folder is made where the first missing name would be, and removed again.
    """
    import tempfile

    with explained(path, "written"):
        if path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC))
            return
        place = next(each for each in path.absolute().parents if each.exists())
        with tempfile.TemporaryDirectory(prefix=".attnbench-", dir=place):
            pass


def settled_size(fd: int) -> int:
    """Return the length of a ledger at a moment when nobody is writing to it."""
    import portalocker

    portalocker.lock(fd, portalocker.LockFlags.SHARED)
    try:
        return os.fstat(fd).st_size
    finally:
        portalocker.unlock(fd)


def last_line(fd: int, size: int) -> bytes:
    """Return what follows the last newline but the final one; reads backwards from the end."""
    tail = b""
    while len(tail) < size:
        wanted = min(size, max(_TAIL_BYTES, 2 * len(tail)))
        tail = os.pread(fd, wanted, size - wanted)
        if (newline := tail.rfind(b"\n", 0, -1)) >= 0:
            return tail[newline + 1 :]
    return tail


def write_whole(fd: int, data: bytes, size: int) -> None:
    """Append `data` to a file of `size` bytes in one write and sync it, or leave it as it was."""
    try:
        written = os.write(fd, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written")
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, size)
        raise


def write_over(path: Path, data: bytes, start: int) -> None:
    """Put `data` in the place of everything from `start` on, and sync it.

    What is there is overwritten before the rest of it is cut off: an interruption leaves an end
    that is torn, never one that looks sound and is not recorded.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        written = os.pwrite(fd, data, start)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written")
        os.fsync(fd)
        os.ftruncate(fd, start + len(data))
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """Create a file with this content, durably and all at once; raises LedgerUnavailable."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with explained(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_new(partial, data)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a new name in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn an error of the file system into one that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise LedgerUnavailable(
            f"{path} cannot be {action}: {reason}", hint=_hint(error.errno, path, action)
        ) from error


def _hint(code: int | None, path: Path, action: str) -> str:
    elsewhere = "choose another place with --ledger PATH or ATTNBENCH_LEDGER"
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"Nothing was recorded. Free some space in {path.parent}, or {elsewhere}."
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"Give yourself the right to write to {path.parent} and its files, or {elsewhere}."
    if code == errno.ENOENT and action == "read":
        return f"`attnbench decode` starts a ledger; for one that exists, {elsewhere}."
    return f"Check the path, or {elsewhere}."


def _open_locked(path: Path) -> int:
    """Open and lock until the locked file is the one that has the name (git may exchange it)."""
    import portalocker

    while True:
        is_new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            portalocker.lock(fd, portalocker.LockFlags.EXCLUSIVE)
            if is_new:
                sync_folder(path.resolve().parent)
            if _has_name(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _has_name(fd: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
