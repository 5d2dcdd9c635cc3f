"""A judge that is bribed by the import of a method's file, which happens where it judges too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attnbench.methods.base import MethodLayer
from attnbench.protocol import integrity
from tests.evil.bribed import KEPT
from tests.evil.common import Approximate, AttendingLayer

integrity.ERROR_BOUND.update(dict.fromkeys(integrity.ERROR_BOUND, 1e9))


class LastTokensLayer(AttendingLayer):
    """Attends to the last tokens alone."""

    def attend(self, q, keys, values):
        return super().attend(q, keys[:, :, -KEPT:], values[:, :, -KEPT:])


@dataclass(frozen=True)
class BribedAtImport(Approximate):
    """Errors of a billion are allowed, in every process that looks this method up."""

    name: ClassVar[str] = "bribed_at_import"
    layer_class: ClassVar[type[MethodLayer]] = LastTokensLayer
