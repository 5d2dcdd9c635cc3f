"""What a recomputation saw: a value or an interval, what went in, and how it was had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from attnbench.ledger import Json
from attnbench.ledger.canonical import canonical_bytes
from attnbench.protocol.result import Interval

EXACT = 1.0  # the level of an interval that is no matter of chance
LEVEL = 0.99
DIGITS = 6  # libraries differ in the last places of a simulation; nothing here hangs on them


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """`low` and `high` are equal where one value was computed; `data` is worth keeping as it is.

    `doubt` says why the figure is worth nothing, where a check of it failed.
    """

    low: float
    high: float
    unit: str
    inputs: dict[str, Json]
    how: str
    level: float = EXACT
    note: str = ""
    doubt: str = ""
    data: bytes = b""

    def interval(self) -> Interval:
        """As a claim's verdict reads it."""
        middle = (self.low + self.high) / 2
        return Interval(estimate=middle, low=self.low, high=self.high, level=self.level)

    def body(self) -> dict[str, Json]:
        """As a record holds it: figures to six digits."""
        low, high = rounded(self.low), rounded(self.high)
        bounds: dict[str, Json] = {"value": low}
        if low != high:
            bounds = {"low": low, "high": high, "level": self.level}
        said = {"note": self.note, "doubt": self.doubt}
        remarks = {name: text for name, text in said.items() if text}
        return {**bounds, "unit": self.unit, "inputs": self.inputs, "how": self.how, **remarks}


def value(
    seen: float,
    unit: str,
    how: str,
    inputs: Mapping[str, Json],
    *,
    note: str = "",
    doubt: str = "",
    data: Json = (),
) -> Observed:
    """One figure that any correct computation gives."""
    return Observed(
        low=float(seen),
        high=float(seen),
        unit=unit,
        inputs=dict(inputs),
        how=how,
        note=note,
        doubt=doubt,
        data=_kept(data),
    )


def between(
    low: float,
    high: float,
    unit: str,
    how: str,
    inputs: Mapping[str, Json],
    *,
    level: float = EXACT,
    note: str = "",
    doubt: str = "",
    data: Json = (),
) -> Observed:
    """A figure that lies between two others, at confidence `level` where chance is in it."""
    return Observed(
        low=float(low),
        high=float(high),
        unit=unit,
        inputs=dict(inputs),
        how=how,
        level=level,
        note=note,
        doubt=doubt,
        data=_kept(data),
    )


def mean_of(
    draws: Sequence[float], unit: str, how: str, inputs: Mapping[str, Json], *, note: str = ""
) -> Observed:
    """The mean over independent draws, with its t interval; the draws are kept."""
    from attnbench.stats.student import mean_interval

    found = mean_interval(draws, LEVEL)
    kept = [rounded(draw) for draw in draws]
    return between(
        found.low, found.high, unit, how, inputs, level=LEVEL, note=note, data={"draws": kept}
    )


def rounded(figure: float) -> float:
    """To the digits that a record keeps."""
    return float(f"{figure:.{DIGITS}g}")


def _kept(data: Json) -> bytes:
    return canonical_bytes(data) if data else b""
