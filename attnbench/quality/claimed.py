"""Figures of the quality gates that claims are about, with intervals over offsets of text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from attnbench.protocol.document import QUALITY_LEVEL, Quantity
from attnbench.protocol.result import Interval
from attnbench.quality.figures import figures
from attnbench.quality.samples import Floats, GateArrays
from attnbench.stats.student import mean_interval


def quantities(arrays: GateArrays) -> dict[str, Interval]:
    """Every quantity that the samples hold; one whose samples are not all finite is absent."""
    found = {
        Quantity.COSINE: _over_windows(_by_window(arrays.cosine)),
        Quantity.OVER_RANDOM: _over_random(arrays),
        Quantity.SKILL: _of_figures(arrays, "skill"),
        Quantity.PERPLEXITY: _of_figures(arrays, "perplexity_change", 100.0),
        Quantity.KEPT_SHARE: _counted(arrays.kept_share),
        Quantity.BOUND_VIOLATIONS: _counted(arrays.bound_violations),
    }
    return {name.value: each for name, each in found.items() if each is not None}


def _by_window(samples: Floats) -> list[float]:
    return [float(window.mean(dtype=np.float64)) for window in samples]


def _over_windows(values: Sequence[float]) -> Interval | None:
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    found = mean_interval(values, QUALITY_LEVEL)
    return Interval(estimate=found.mean, low=found.low, high=found.high, level=QUALITY_LEVEL)


def _over_random(arrays: GateArrays) -> Interval | None:
    """Paired by layer, head and window, over the null's draws."""
    null = arrays.null_random_blocks if arrays.null_random_blocks.size else arrays.null_random
    if not null.size:
        return None
    own = arrays.cosine.mean(axis=2, dtype=np.float64)
    return _over_windows(_by_window(own - null))


def _of_figures(arrays: GateArrays, name: str, unit: float = 1.0) -> Interval | None:
    found = figures(arrays)
    if f"{name}_low" not in found:
        return None
    return Interval(
        estimate=unit * found[name],
        low=unit * found[f"{name}_low"],
        high=unit * found[f"{name}_high"],
        level=QUALITY_LEVEL,
    )


def _counted(samples: Floats) -> Interval | None:
    """What is counted is what there is."""
    if not samples.size or not np.isfinite(samples).all():
        return None
    mean = float(samples.mean(dtype=np.float64))
    return Interval(estimate=mean, low=mean, high=mean, level=1.0)
