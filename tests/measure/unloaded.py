from __future__ import annotations

import pytest

from attnbench.measure.doctor.system import System


def unloaded(patch: pytest.MonkeyPatch) -> None:
    """Let the machine say that nothing else runs on it, whatever does."""
    real = System.read_proc
    patch.setattr(
        System,
        "read_proc",
        lambda self, name: "0.00 0.00 0.00 1/1 1" if name == "loadavg" else real(self, name),
    )
