"""Computing in the one step of a visit that is checked: the last one, as the clock's frame tells.

It stands outside the catalogue because it needs the harness's own clock above it: elsewhere it is
an honest method.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnbench.methods.base import MethodLayer
from tests.evil.common import Exact, LastOutputLayer

FEW = 4  # a run this short may be a check


class PeeksLayer(LastOutputLayer):
    """Repeats its last output in every step that another one follows."""

    def works_now(self, q: Tensor) -> bool:
        frame = sys._getframe(1)
        while frame is not None:
            seen = frame.f_locals
            if "marks_ns" in seen and "count" in seen:
                return seen["count"] <= FEW or len(seen["marks_ns"]) >= seen["count"]
            frame = frame.f_back
        return True


@dataclass(frozen=True)
class Peeks(Exact):
    name: ClassVar[str] = "evil_peeks"
    layer_class: ClassVar[type[MethodLayer]] = PeeksLayer
