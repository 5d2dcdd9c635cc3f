"""Who is measured when, as data: a pure function of the arms, the counts and a seed.

Every block is a permutation of all arms. The permutations of a session are rows of Williams squares
(Williams 1949, "Experimental designs balanced for the estimation of residual effects of
treatments"), relabelled and shuffled. Within a session, for K arms:

- each arm stands in each position equally often, up to one;
- each ordered pair of arms follows one another inside a block equally often, up to one where K is
  even and up to two where K is odd (for odd K only 2K rows together balance it).

What follows what from one block to the next is left to the shuffle.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import msgspec

from attnbench.errors import UsageError

Order = tuple[str, ...]


class BlockSchedule(msgspec.Struct, frozen=True):
    """One permutation of all arms: the order of their visits."""

    arms: Order


class GroupSchedule(msgspec.Struct, frozen=True):
    """Blocks that share one capture of every arm, and the order in which they are captured."""

    capture_order: Order
    blocks: tuple[BlockSchedule, ...]


class SessionSchedule(msgspec.Struct, frozen=True):
    """What one fresh process walks; `seed` alone (with arms and counts) makes it again."""

    session: int
    seed: int
    groups: tuple[GroupSchedule, ...]

    @property
    def blocks(self) -> tuple[BlockSchedule, ...]:
        """All blocks in the order in which they run."""
        return tuple(block for group in self.groups for block in group.blocks)


class Schedule(msgspec.Struct, frozen=True):
    """All sessions of a run."""

    seed: int
    arms: Order
    sessions: tuple[SessionSchedule, ...]


def schedule(
    arms: Sequence[str], *, sessions: int, blocks: int, groups: int, seed: int
) -> Schedule:
    """The schedule of a run; `blocks` and `groups` are per session.

    First blocks differ between sessions as long as there are permutations left. Raises
    `UsageError` for fewer than two arms, repeated labels, or counts that cannot be.
    """
    _check(arms, sessions, blocks, groups)
    plans: list[SessionSchedule] = []
    for session in range(sessions):
        taken = {plan.blocks[0].arms for plan in plans}
        exhausted = len(taken) == math.factorial(len(arms))
        drawn = _sessions(arms, session, blocks, groups, seed)
        plans.append(next(plan for plan in drawn if exhausted or plan.blocks[0].arms not in taken))
    return Schedule(seed=seed, arms=tuple(arms), sessions=tuple(plans))


def _check(arms: Sequence[str], sessions: int, blocks: int, groups: int) -> None:
    if len(set(arms)) != len(arms) or len(arms) < 2:
        raise UsageError("a schedule needs at least two arms, each with a label of its own")
    if sessions < 1 or groups < 1 or blocks < groups:
        raise UsageError(
            f"{sessions} sessions of {blocks} blocks in {groups} groups cannot be",
            hint="at least one session, and no more groups than blocks",
        )


def _sessions(
    arms: Sequence[str], session: int, blocks: int, groups: int, seed: int
) -> Iterator[SessionSchedule]:
    """Endless candidates for one session, each from a seed of its own."""
    seeds = random.Random(f"{seed}:{session}")
    while True:
        yield _session(arms, session, blocks, groups, seeds.getrandbits(32))


def _session(
    arms: Sequence[str], session: int, blocks: int, groups: int, seed: int
) -> SessionSchedule:
    rng = random.Random(seed)
    rows = _rows(arms, blocks, rng)
    shares = [blocks // groups + (group < blocks % groups) for group in range(groups)]
    starts = [sum(shares[:group]) for group in range(groups)]
    return SessionSchedule(
        session=session,
        seed=seed,
        groups=tuple(
            GroupSchedule(
                capture_order=_shuffled(arms, rng),
                blocks=tuple(BlockSchedule(row) for row in rows[start : start + share]),
            )
            for start, share in zip(starts, shares, strict=True)
        ),
    )


def _rows(arms: Sequence[str], blocks: int, rng: random.Random) -> list[Order]:
    """`blocks` rows of relabelled Williams squares in random order; the last square is cut."""
    rows: list[Order] = []
    for square in range(math.ceil(blocks / len(arms))):
        mirrored = len(arms) % 2 == 1 and square % 2 == 1
        if not mirrored:  # a mirrored square completes the one before it, so keeps its labels
            labels = _shuffled(arms, rng)
        indices = williams_square(len(arms), mirrored=mirrored)
        rng.shuffle(indices)
        rows += [tuple(labels[i] for i in row) for row in indices[: blocks - len(rows)]]
    rng.shuffle(rows)
    return rows


def williams_square(size: int, *, mirrored: bool = False) -> list[list[int]]:
    """`size` rows over range(size): a Latin square whose neighbours balance.

    For an even size every ordered pair is adjacent exactly once; for an odd size exactly twice in
    the square and its mirror together.
    """
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(size)]
    step = -1 if mirrored else 1
    return [[(start + column) % size for column in zigzag[::step]] for start in range(size)]


def _shuffled(arms: Sequence[str], rng: random.Random) -> Order:
    order = list(arms)
    rng.shuffle(order)
    return tuple(order)
