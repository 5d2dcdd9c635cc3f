"""The folder in which this project keeps what it can make again, and small things kept there."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


def cache_root() -> Path:
    """Where this project keeps what it can make again."""
    own = os.environ.get("ATTNBENCH_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "attnbench"


def cached(kind: str, made_of: tuple[str, ...], make: Callable[[], bytes]) -> bytes:
    """What `make` makes, from the cache where it was made before of the same things.

    `made_of` names everything that the bytes depend on. A file that is torn, changed or another's
    is made again; without a folder that can be written nothing is kept, and nothing fails.
    """
    name = hashlib.sha256("\0".join((kind, *made_of)).encode()).hexdigest()
    try:
        path = cache_root() / kind / name
    except RuntimeError:  # there is no home
        return make()
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> bytes | None:
    """The bytes behind their digest; None where they are not those that were written."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    data = held[_DIGEST_BYTES:]
    return data if held[:_DIGEST_BYTES] == _digest(path, data) else None


def _write(path: Path, data: bytes) -> None:
    """All at once, so that nobody reads half of it."""
    with suppress(OSError):  # it is made again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:16]}.", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(path, data) + data)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _digest(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + data).digest()
