"""How the ratio of two equally fast arms spreads over sessions, and what narrows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from msgspec import UNSET, UnsetType

from attnbench.protocol.blocks import log_ratios, session_blocks
from attnbench.protocol.calibration_result import PairSpread, Placement, Sd
from attnbench.protocol.cell import SessionSamples
from attnbench.protocol.result import Interval
from attnbench.protocol.validity import Case, void
from attnbench.stats.equivalence import smallest_effect
from attnbench.stats.ratio import as_ratio, session_ratio
from attnbench.stats.spread import PooledSd, capture_variances, jackknife, pooled_sd

Pair = tuple[str, str]  # an arm and what it is compared with
SHARED_ARM = 0.5  # correlation of two ratios that share one of three arms that spread alike
PLANNED_SESSIONS = (3, 8)  # canonical and rigorous


def pair_spread(
    samples: Sequence[SessionSamples], pairs: Sequence[Pair], level: float
) -> PairSpread:
    """The spread of these pairs together, over the sessions in which all their arms count."""
    arms = tuple(dict.fromkeys(chain.from_iterable(pairs)))
    values = _Values.of([session for session in samples if counts(session, arms)], pairs)
    named = tuple("/".join(pair) for pair in pairs)
    if values.sessions < 2:
        return PairSpread(pairs=named, sessions=values.sessions)
    everyone = range(values.sessions)
    mean, robust = values.by_mean(everyone), values.by_robust(everyone)
    greater = max(mean.sd, robust.sd)
    return PairSpread(
        pairs=named,
        sessions=values.sessions,
        mean=_sd(mean),
        robust=_sd(robust),
        robust_gain=_gain(
            values.sessions, lambda i: (values.by_mean(i).sd, values.by_robust(i).sd), level
        ),
        placement=_placement(values, level),
        smallest_effects={
            str(sessions): smallest_effect(greater, sessions, level)
            for sessions in PLANNED_SESSIONS
        },
    )


def counts(session: SessionSamples, arms: tuple[str, ...]) -> bool:
    """Whether a comparison of these arms in this session is not void by the usual checks."""
    return void(Case([session], arms, [session_blocks(session, arms)], None)) is None


@dataclass(frozen=True)
class _Values:
    """Log ratios of each pair by session, group and block, and both centres by session."""

    blocks: tuple[tuple[list[list[float]], ...], ...]
    means: tuple[tuple[float, ...], ...]
    robusts: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, samples: Sequence[SessionSamples], pairs: Sequence[Pair]) -> _Values:
        arms = tuple(dict.fromkeys(chain.from_iterable(pairs)))
        kept = [session_blocks(session, arms).kept for session in samples]
        blocks = tuple(tuple(log_ratios(of, *pair) for of in kept) for pair in pairs)
        centres = [[session_ratio(groups) for groups in of_pair] for of_pair in blocks]
        return cls(
            blocks,
            tuple(tuple(ratio.mean for ratio in of_pair) for of_pair in centres),
            tuple(tuple(ratio.robust for ratio in of_pair) for of_pair in centres),
        )

    @property
    def sessions(self) -> int:
        return len(self.means[0])

    def by_mean(self, sessions: Sequence[int]) -> PooledSd:
        return _pooled(self.means, sessions)

    def by_robust(self, sessions: Sequence[int]) -> PooledSd:
        return _pooled(self.robusts, sessions)


def _pooled(values: Sequence[Sequence[float]], sessions: Sequence[int]) -> PooledSd:
    samples = [[of_pair[i] for i in sessions] for of_pair in values]
    return pooled_sd(samples, correlation=SHARED_ARM)


def _sd(found: PooledSd) -> Sd:
    return Sd(sd=found.sd, degrees=found.degrees, upper=found.upper, level=found.level)


def _placement(values: _Values, level: float) -> Placement | UnsetType:
    """Unset where the sessions that are whole do not tell captures apart."""
    sizes = [[len(group) for group in session] for session in values.blocks[0]]
    usual = max(sizes, key=lambda size: (sizes.count(size), sum(size)))
    whole = [i for i, size in enumerate(sizes) if size == usual]

    def spreads(chosen: Sequence[int]) -> tuple[float, float, int]:
        found = [
            capture_variances([of_pair[whole[i]] for i in chosen]) for of_pair in values.blocks
        ]
        one, several, blocks = zip(*found, strict=True)
        at_once, apart = (math.fsum(of_size) / len(of_size) for of_size in (one, several))
        return math.sqrt(at_once), math.sqrt(apart), blocks[0]

    try:
        one, several, blocks = spreads(range(len(whole)))
    except ValueError:
        return UNSET
    return Placement(
        blocks=blocks,
        one_capture=one,
        several_captures=several,
        gain=_gain(len(whole), lambda chosen: spreads(chosen)[:2], level),
    )


def _gain(
    sessions: int, spreads: Callable[[Sequence[int]], tuple[float, float]], level: float
) -> Interval | UnsetType:
    """One spread over another with its interval; unset below three sessions, or without spread."""

    def log_gain(chosen: Sequence[int]) -> float:
        above, below = spreads(chosen)
        return math.log(above / below)

    try:
        gain, half_width = log_gain(range(sessions)), jackknife(sessions, log_gain, level)
    except (ValueError, ZeroDivisionError):
        return UNSET
    return Interval(
        estimate=as_ratio(gain),
        low=as_ratio(gain - half_width),
        high=as_ratio(gain + half_width),
        level=level,
    )
