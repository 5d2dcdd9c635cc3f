"""Methods of other people that a plan must refuse, or tell apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attnbench.methods.base import Family
from tests.measure.broken import Good


class Replacing(Good):
    """Changes what the model was trained with."""

    name: ClassVar[str] = "rotary_of_another_kind"
    family: ClassVar[Family] = Family.REPLACEMENT


class Namesake(Good):
    """Bears the name of a built-in method."""

    name: ClassVar[str] = "sdpa"


@dataclass(frozen=True)
class Halved(Good):
    """With a parameter."""

    share: float = 0.5

    name: ClassVar[str] = "halved"
