"""The model that every arm of a process runs in: its weights, its modules and their hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attnbench.errors import SessionLost
from attnbench.measure.sums import weight_sums
from attnbench.protocol.verdict import Reason


class Intact:
    """A model as it is now; no arm may have run in it."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._weights = weight_sums(module)
        self._anatomy = anatomy(module)

    def require(self) -> None:
        """Raise `SessionLost` where weights or modules are not what they were."""
        if not torch.equal(weight_sums(self._module), self._weights):
            raise SessionLost("it changed the model's weights", reason=Reason.WEIGHTS_CHANGED.value)
        if anatomy(self._module) != self._anatomy:
            raise SessionLost(
                "it changed the model's modules or their hooks", reason=Reason.WEIGHTS_CHANGED.value
            )


def anatomy(module: nn.Module) -> list[tuple[Any, ...]]:
    """Every part's class, its own forward if an instance has one, and its hooks."""
    return [
        (
            name,
            type(part),
            type(part).forward,
            vars(part).get("forward"),
            list(part._forward_hooks.values()),
            list(part._forward_pre_hooks.values()),
        )
        for name, part in module.named_modules()
    ]
