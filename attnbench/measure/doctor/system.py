"""What the kernel tells of this machine, in /proc and /sys; tests have folders of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class System:
    """Where the kernel tells; a file that is not there reads as empty."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")

    def read_proc(self, name: str) -> str:
        """A file below /proc, without the space around it."""
        return read(self.proc / name)

    def read_sys(self, name: str) -> str:
        """A file below /sys, likewise."""
        return read(self.sys / name)

    def cpu_files(self, pattern: str) -> list[str]:
        """The texts of all files below /sys/devices/system/cpu that match, in order."""
        return [read(path) for path in sorted((self.sys / "devices/system/cpu").glob(pattern))]

    def meminfo_bytes(self, field: str) -> int:
        """A field of /proc/meminfo in bytes, 0 where there is none."""
        found = re.search(rf"^{field}:\s*(\d+) kB$", self.read_proc("meminfo"), re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def cpu_cgroups(self) -> Iterator[Path]:
        """The folders of this process's CPU control group and those above it, the nearest first.

        In a container the path may be the host's; then what is left is the container's own root.
        """
        for mount, path in self._cpu_mounts():
            root = mount.resolve()
            group = (root / path.lstrip("/")).resolve()
            yield from [at for at in (group, *group.parents) if at.is_relative_to(root)] or [root]

    def _cpu_mounts(self) -> Iterator[tuple[Path, str]]:
        """Version 2 has one tree; version 1 has one for each controller, in folders of its name."""
        root = self.sys / "fs/cgroup"
        for line in self.read_proc("self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                yield root, path
            elif "cpu" in controllers.split(","):
                yield root / controllers, path


def read(path: Path) -> str:
    """The text of a file, without the space around it; empty where there is none to read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
