"""Methods outside the package that do not work: one fails after a while, one never answers."""

from __future__ import annotations

import time
from typing import ClassVar

from torch import Tensor

from attnbench.methods.base import LayerShape, MethodLayer
from tests.third_party.my_window import MyWindow, MyWindowLayer

GOOD_STEPS = 25  # more than the trial and the warm-up of a quick run take


class RaisesLate(MyWindow):
    """Gets through trial and warm-up, and raises while it is timed."""

    name: ClassVar[str] = "raises_late"

    def layer(self, shape: LayerShape) -> MethodLayer:
        return RaisesLateLayer(self, shape)


class RaisesLateLayer(MyWindowLayer):
    steps = 0

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.steps += 1
        if self.steps > GOOD_STEPS:
            raise IndexError(f"block {GOOD_STEPS} is out of range")
        return super().decode(q, k, v)


class Hangs(MyWindow):
    """Waits for something that never happens."""

    name: ClassVar[str] = "hangs"

    def layer(self, shape: LayerShape) -> MethodLayer:
        return HangsLayer(self, shape)


class HangsLayer(MyWindowLayer):
    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        while True:
            time.sleep(1)
